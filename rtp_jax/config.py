"""Every knob of rtp_jax, on one page, and the only reader of environment variables.

Configs are frozen and passed by value: a component receives the one section it needs.  `None` is
resolved once, at start, where the device is known; what was chosen is printed.  Each field is also
a command-line flag (`--max-num-seqs`), an environment variable (`RTP_JAX_MAX_NUM_SEQS`), a key of
the YAML file and, except for the server's, a keyword of `Engine`: one name in all four.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtp_jax.errors import InvalidArgument, Unimplemented
from rtp_jax.sampling_params import unknown_option

ENVIRONMENT_PREFIX = "RTP_JAX_"
# vLLM's names for what this build does not do yet, and the values that ask for nothing.
LATER = {
    "pipeline_parallel_size": (1, "pipeline parallelism"),
    "data_parallel_size": (1, "data parallelism"),
    "speculative_config": (None, "speculative decoding"),
    "enable_lora": (False, "adapters"),
    "kv_transfer_config": (None, "vLLM's KV connectors (here: role, and prefill_at of a request)"),
    "trust_remote_code": (False, "code from checkpoints, for safety, at any time,"),
    "limit_mm_per_prompt": (None, "images and other media"),
}


def knob(default, help_text: str, **allowed):
    """Declare a field: its default, one line of help, and `low`, `high` or `choices`."""
    return field(default=default, metadata={"help": help_text, **allowed})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, and in which numbers it computes."""

    dtype: str = knob(
        "auto",
        "auto: bfloat16 on GPU and on CPUs with AVX512-BF16, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    max_model_len: int | None = knob(
        None,
        "tokens of prompt and output together; None: what the model and the memory allow",
        low=1,
    )
    seed: int = knob(0, "where the seeds of requests without one come from", low=0, high=2**32 - 1)
    deterministic: bool = knob(
        False, "compile one bucket per dimension, so that batch-mates never change a bit"
    )
    quantization: str | None = knob(
        None,
        "quantize weights while they are loaded: int8 (weights only), int8_dynamic (activations"
        " too), int4 (groups of 128), fp8 (activations too); a checkpoint that comes quantized is"
        " run as it is",
        choices=(None, "int8", "int8_dynamic", "int4", "fp8"),
    )
    head_quantization: str = knob(
        "auto",
        "of the matrix that makes logits, and of the embedding where it is the same one; auto: as"
        " quantization, but int8_dynamic with int4; none: as in the checkpoint",
        choices=("auto", "none", "int8", "int8_dynamic", "int4", "fp8"),
    )
    tokenizer: str | None = knob(None, "folder of the tokenizer; None: the model's")
    skip_tokenizer_init: bool = knob(False, "load no tokenizer: prompts are token ids, no text")
    served_model_name: str | None = knob(None, "name shown to clients; None: the model's")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """How large KV pages are, and how many there are."""

    page_size: int | None = knob(
        None, "tokens per page; None: 16 on CPU, 64 on GPU", low=1, high=256
    )
    kv_dtype: str = knob(
        "auto",
        "what KV pages hold: auto (the model's dtype), or int8 or fp8 with a scale for each head of"
        " a token, in about half the memory of bfloat16",
        choices=("auto", "float32", "bfloat16", "int8", "fp8"),
    )
    kv_layers: str | None = knob(
        None, "layers whose pages hold something else than kv_dtype, such as 0-1:bfloat16,27:fp8"
    )
    kv_memory: int | None = knob(
        None,
        "bytes for KV pages; None: on CPU the smaller of 4 GiB and a quarter of the memory limit,"
        " on GPU 0.9 of what the weights leave free",
        low=1,
    )
    num_pages: int | None = knob(
        None, "pages of KV, the null page included; overrides kv_memory", low=2
    )
    enable_prefix_caching: bool = knob(True, "reuse the pages of an equal token prefix")
    page_key: str | None = knob(
        None, "key of the page hash; None: the model's fingerprint, so that restarts agree"
    )
    kv_host_bytes: int = knob(
        0, "bytes of host memory for pages that the device has no room for", low=0
    )
    kv_disk_path: str | None = knob(None, "folder on a local disk for pages below host memory")
    kv_disk_bytes: int = knob(8 << 30, "bytes that pages may take in kv_disk_path", low=1)
    kv_remote_url: str | None = knob(
        None, "Redis or Valkey that workers share pages through, such as redis://host:6379/0"
    )
    kv_remote_bytes: int | None = knob(
        None, "bytes that this worker keeps there; None: as many as the server lets it", low=1
    )
    kv_staging_bytes: int = knob(
        256 << 20, "bytes of pages on their way to the device, and as many on their way back", low=1
    )
    kv_write_hits: int | None = knob(
        None,
        "copy a page to the tiers below once it was hit this often (0: as soon as it is full);"
        " None: when the device has no room for it",
        low=0,
    )
    kv_flush_s: float = knob(
        5.0,
        "how long a clean end may write pages that only host memory has to the tier below (0: no"
        " time)",
        low=0,
        high=3600,
    )
    kv_load: str = knob(
        "auto",
        "auto: load pages from a tier where that is measured to be faster than computing them;"
        " always: wherever they are",
        choices=("auto", "always"),
    )

    @property
    def has_tiers(self) -> bool:
        """True if there is a tier below the device."""
        chosen = self.kv_host_bytes > 0, self.kv_disk_path, self.kv_remote_url
        return any(chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """How much runs at once, and what waits."""

    max_num_seqs: int = knob(64, "sequences that run at once", low=1, high=4096)
    max_num_batched_tokens: int = knob(512, "tokens of one step", low=1, high=65536)
    max_prefill_chunk: int | None = knob(
        None, "tokens of one prompt in one step; None: max_num_batched_tokens", low=1
    )
    max_waiting: int = knob(1024, "sequences that may wait; more are refused", low=0)
    ageing_s: float = knob(
        10.0, "seconds of waiting that are worth one level of priority; 0: never", low=0
    )
    max_queue_s: float | None = knob(None, "longest wait before a request is given up", low=0)

    @property
    def longest_chunk(self) -> int:
        """Tokens of one prompt in one step, at most."""
        most = self.max_num_batched_tokens
        return most if self.max_prefill_chunk is None else min(self.max_prefill_chunk, most)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerConfig:
    """How steps are compiled and run."""

    platform: str | None = knob(
        None, "cpu or cuda; None: the first device that jax has", choices=(None, "cpu", "cuda")
    )
    tensor_parallel_size: int = knob(
        1, "devices of this process that share the model, its heads and its widths", low=1, high=64
    )
    compile_cache: str | None = knob(
        None, "folder of compiled programs; '': none; None: ~/.cache/rtp_jax/programs"
    )
    attention: str = knob("auto", "implementation of paged attention, by name")
    matmul: str = knob("auto", "implementation of products with weights, by name")
    native: str = knob(
        "auto",
        "C++ kernels on the CPU, built at first use: auto (the best this processor runs), off, or"
        " a level",
        choices=("auto", "off", "amx", "avx512_bf16", "avx512", "avx2", "portable"),
    )
    dump_failed: str | None = knob(
        None, "folder for a record of each request that fails by our fault: ids, options, versions"
    )


ROLES = ("both", "prefill", "decode")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig:
    """What an engine computes for others, and whom it asks."""

    role: str | None = knob(
        None,
        "prefill: compute KV pages for other workers, and generate nothing; decode: generate, with"
        " pages of others where a request names them; both: all of it; None: pages stay here",
        choices=(None, *ROLES),
    )
    transfer_lease_s: float = knob(
        10.0, "how long pages are held for a worker that does not ask for them", low=0.01, high=3600
    )
    transfer_bytes: int = knob(
        1 << 30,
        "bytes of pages that are held for other workers, and as many on their way from them",
        low=1,
    )
    transfer_min_tokens: int | None = knob(
        None,
        "prompt tokens that are worth asking another worker; None: as many as are computed here in"
        " the time that asking takes, both measured",
        low=0,
    )
    transfer_stall_s: float = knob(
        0.5,
        "how long another worker may say nothing before its pages are computed here; longer, up to"
        " 3 s, where computing them takes longer",
        low=0.01,
        high=60,
    )
    transfer_peers: str | None = knob(
        None,
        "prefill workers that requests may name: HOST or HOST:PORT, separated by commas, or *;"
        " None: those on this machine",
    )
    transfer_token_file: str | None = knob(
        None, "file whose first line is the bearer token for other workers"
    )
    transfer_tls_ca: str | None = knob(
        None, "PEM file of the CA that signed other workers' certificates; None: no TLS"
    )
    kv_transport: str = knob(
        "grpc",
        "how bytes of pages travel: in grpc's messages, or by jax's transfer server, unencrypted",
        choices=("grpc", "jax"),
    )
    kv_transport_host: str = knob(
        "127.0.0.1",
        "where jax's transfer server listens, by number, as others are told; 0.0.0.0 or ::: the"
        " address that this machine has on its way to others",
    )
    kv_transport_bytes: int = knob(256 << 20, "bytes that may wait to be fetched from it", low=1)
    kv_transport_stuck: int = knob(
        4, "pulls that may be stuck before the worker drains and ends", low=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The gRPC door, the HTTP door and their neighbours."""

    host: str = knob("127.0.0.1", "address to listen on")
    port: int = knob(50051, "port of the gRPC service; 0: a free one, printed", low=0, high=65535)
    http_port: int | None = knob(
        None, "port of the OpenAI-compatible door; 0: a free one; None: off", low=0, high=65535
    )
    http_max_body_bytes: int = knob(8 << 20, "largest HTTP body", low=1024, high=1 << 30)
    metrics_port: int | None = knob(
        None, "port of the Prometheus endpoint; 0: a free one; None: off", low=0, high=65535
    )
    metrics_compat: str = knob("vllm", "also serve these names", choices=("vllm", "none"))
    tls_cert: str | None = knob(None, "PEM file of the server's certificate chain")
    tls_key: str | None = knob(None, "PEM file of its key")
    tls_client_ca: str | None = knob(
        None, "PEM file of the CA that clients must be signed by (mTLS)"
    )
    auth_token_file: str | None = knob(None, "file of bearer tokens, one a line")
    insecure: bool = knob(False, "listen beyond loopback without TLS")
    reflection: bool = knob(True, "serve gRPC reflection")
    max_message_bytes: int = knob(64 << 20, "largest gRPC message", low=1024, high=1 << 30)
    max_request_s: float = knob(3600.0, "longest deadline that a request may have", low=0.001)
    stall_timeout_s: float = knob(
        60.0, "a step that takes longer turns health to NOT_SERVING", low=0.1
    )
    drain_timeout_s: float = knob(30.0, "how long SIGTERM waits for running requests", low=0)
    json_logs: bool = knob(False, "log lines as JSON")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """All that an engine needs besides the model's name."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    runner: RunnerConfig = RunnerConfig()
    transfer: TransferConfig = TransferConfig()

    @classmethod
    def from_options(cls, **options: object) -> "EngineConfig":
        """Build from flat names (`max_model_len=4096, num_pages=100`); unknown ones raise."""
        sections: dict[str, Any] = {part.name: part.type for part in dataclasses.fields(cls)}
        known = {
            knob_.name: name
            for name, type_ in sections.items()
            for knob_ in dataclasses.fields(type_)
        }
        chosen: dict[str, dict[str, object]] = {name: {} for name in sections}
        for name, value in options.items():
            if name in LATER and value == LATER[name][0]:
                continue
            if name in LATER:
                raise Unimplemented(
                    f"RTPJ-1002 OPTION_UNSUPPORTED: {name}={value!r}: {LATER[name][1]} is not"
                    " supported. Remove the option.",
                    field=name,
                )
            if name not in known:
                raise unknown_option("Engine", name, value, list(known))
            chosen[known[name]][name] = value
        return cls(**{name: checked(type_, chosen[name]) for name, type_ in sections.items()})


def checked(section: type, values: Mapping[str, object]):
    """Build one section from values of the right types and ranges, or raise by name."""
    knobs = {knob_.name: knob_ for knob_ in dataclasses.fields(section)}
    for name, value in values.items():
        if name not in knobs:
            raise unknown_option(section.__name__, name, value, list(knobs))
        if reason := _fault(knobs[name], value):
            raise InvalidArgument(
                f"RTPJ-1101 CONFIG_INVALID: {name}={value!r} is not allowed; it must be {reason}.",
                field=name,
            )
    return section(**values)


def _fault(knob_: dataclasses.Field, value: object) -> str | None:
    """Say in words what a field allows, or return None if the value is allowed."""
    allowed = knob_.metadata
    types = typing.get_args(knob_.type) or (knob_.type,)
    if value is None and type(None) in types:
        return None
    if "choices" in allowed:
        words = "one of " + ", ".join(str(choice) for choice in allowed["choices"])
        return None if value in allowed["choices"] else words
    if bool in types:
        return None if isinstance(value, bool) else "True or False"
    if str in types:
        return None if isinstance(value, str) else "a string"
    low, high = allowed.get("low", -math.inf), allowed.get("high", math.inf)
    words = "an integer" if int in types else "a number"
    words += f" in [{low:g}, {high:g}]" if high < math.inf else f" >= {low:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return words
    if int in types and not isinstance(value, int):
        return words
    return None if math.isfinite(value) and low <= value <= high else words


def environment_options() -> dict[str, str]:
    """Read `RTP_JAX_*` variables as flat names in lower case, values as text."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def hub_cache() -> Path:
    """Folder where Hugging Face tools keep downloaded models."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    home = os.environ.get("HF_HOME") or Path(_cache_home()) / "huggingface"
    return Path(home) / "hub"


def program_cache(runner: RunnerConfig) -> Path | None:
    """Folder of compiled programs, or None if they are not kept."""
    if runner.compile_cache is None:
        return Path(_cache_home()) / "rtp_jax" / "programs"
    return Path(runner.compile_cache) if runner.compile_cache else None


def native_cache() -> Path:
    """Folder of native kernels built for this machine."""
    return Path(_cache_home()) / "rtp_jax" / "native"


def compiler_flags() -> str:
    """Read what is handed to XLA besides the program, as it shapes what comes out."""
    return os.environ.get("XLA_FLAGS", "")


def _cache_home() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
