"""The part `peers`: the same steps by `transformers` and by a torch loop written by hand.

Limits are measured anew with torch, and steps are those of the part `engine`, so that rows of one
name can be laid side by side.  jax is not imported here: it would take the memory.
"""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.gpu.results import Results, Row, Skip
from bench.gpu.work import Sizes, Work, shrunk, works
from tools.model_shapes import config_of

try:
    import torch
except ImportError as missing:
    torch, TORCH_MISSING = None, str(missing)

MODELS = ("qwen3-0.6b", "llama-3.1-8b")
ROUNDS = 5
TARGET_S = 0.05
SPARE_BYTES = 8 << 30  # for activations and what compiling takes


class Peers:
    """One model of one peer at a time, on one device."""

    def __init__(self, results: Results, *, dry: bool):
        self.dry, self.device = dry, "cpu" if dry else "cuda"
        self._held: tuple[str, Any] = ("", None)
        self.bytes_per_s, self.flops_per_s = self._limits()
        results.describe(
            device="cpu" if dry else torch.cuda.get_device_name(),
            copy_GB_per_s=self.bytes_per_s / 1e9,
            matmul_TFLOP_per_s=self.flops_per_s / 1e12,
        )

    def _limits(self) -> tuple[float, float]:
        size, width = (1 << 20, 256) if self.dry else (1 << 31, 8192)
        dtype = torch.float32 if self.dry else torch.bfloat16
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copying = self.median_s(lambda: target.copy_(source))
        left = torch.randn((width, width), dtype=dtype, device=self.device)
        multiplying = self.median_s(lambda: left @ left)
        return 2 * size / copying, 2 * width**3 / multiplying

    def median_s(self, run: Callable[[], Any]) -> float:
        """Time a call that is made many times before the device is waited for."""
        with torch.no_grad():
            run()
            once = self._timed(run, 1)
            repeats = 2 if self.dry else int(min(max(TARGET_S / once, 3), 200))
            return statistics.median(self._timed(run, repeats) for _ in range(ROUNDS))

    def _timed(self, run: Callable[[], Any], repeats: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        self._wait()
        return (time.perf_counter() - began) / repeats

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def config(self, name: str) -> dict[str, Any]:
        """Return the config of a model, small in the dry mode."""
        return shrunk(config_of(name)) if self.dry else config_of(name)

    def hold(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what was made for `key`; whatever was made for another is freed first."""
        if self._held[0] != key:
            self._held = ("", None)
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self._held = (key, make())
        return self._held[1]

    def timed(self, run: Callable[[], Any], work: Work, sizes: Sizes) -> Mapping[str, Any]:
        """Time a step and compare it with its floor."""
        seconds = self.median_s(run)
        num_bytes, flops = work.num_bytes(sizes, 4 if self.dry else 2), work.flops(sizes)
        reading, computing = num_bytes / self.bytes_per_s, flops / self.flops_per_s
        tokens = work.batch * work.new / seconds
        return {
            "milliseconds": seconds * 1e3,
            "share_of_floor": max(reading, computing) / seconds,
            "bound": "bytes" if reading >= computing else "flops",
            "tokens_per_s": tokens,
            "note": f"{tokens:.0f} tok/s",
        }

    def must_fit(self, work: Work, sizes: Sizes) -> None:
        """Skip what does not fit into the device."""
        needed = work.num_bytes(sizes, 2) + SPARE_BYTES
        if self.device == "cuda" and needed > torch.cuda.get_device_properties(0).total_memory:
            raise Skip(f"{needed / 1e9:.0f} GB are needed")


def by_hand(peers: Peers, name: str, work: Work) -> Mapping[str, Any]:
    """Time the decoder of `torch_decoder.py`."""
    from bench.gpu.torch_decoder import Decoder, runnable  # needs torch

    sizes = Sizes.of(peers.config(name))
    peers.must_fit(work, sizes)
    decoder = peers.hold(f"hand {name}", lambda: Decoder(sizes, peers.device))
    with torch.no_grad():
        return peers.timed(runnable(decoder, work), work, sizes)


def by_transformers(peers: Peers, name: str, work: Work) -> Mapping[str, Any]:
    """Time a step of `transformers`, whose cache is as long as `work` says when it begins."""
    try:
        import transformers
    except ImportError as reason:
        raise Skip(f"transformers: {reason}") from reason

    config = peers.config(name)
    sizes = Sizes.of(config)
    peers.must_fit(work, sizes)
    kind = transformers.LlamaConfig if config["model_type"] == "llama" else transformers.Qwen3Config

    def make() -> Any:
        given = {key: config[key] for key in config if key not in ("architectures", "torch_dtype")}
        dtype = torch.float32 if peers.dry else torch.bfloat16
        with torch.device(peers.device):
            model = transformers.AutoModelForCausalLM.from_config(
                kind(**given), dtype=dtype, attn_implementation="sdpa"
            )
        return model.eval()

    model = peers.hold(f"transformers {name}", make)
    ids = torch.ones((work.batch, work.new), dtype=torch.int64, device=peers.device)
    with torch.no_grad():
        cache = transformers.DynamicCache()
        if work.before:
            for number in range(sizes.layers):
                shape = (work.batch, sizes.kv_heads, work.before, sizes.head_dim)
                filled = torch.randn(shape, dtype=model.dtype, device=peers.device)
                cache.update(filled, filled, number)

        def run() -> torch.Tensor:
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-work.new)  # the next run begins where this one did
            return out.logits.argmax(-1)

        return peers.timed(run, work, sizes)


def run(results: Results, *, dry: bool, only: str) -> None:
    """Measure both peers at every step."""
    if torch is None:
        results.run([Row("torch", functools.partial(_absent, TORCH_MISSING))])
        return
    if not dry and not torch.cuda.is_available():
        results.run([Row("torch", functools.partial(_absent, "torch sees no GPU"))])
        return
    peers = Peers(results, dry=dry)
    found = [
        Row(f"{name}/{what}/{peer}", functools.partial(measure, peers, name, work))
        for peer, measure in (("by hand", by_hand), ("transformers", by_transformers))
        for name in MODELS
        for what, work in works(dry=dry).items()
    ]
    results.run([row for row in found if only in row.name])


def _absent(reason: str) -> Mapping[str, Any]:
    raise Skip(reason)
