"""Builds an engine: the one place where the rooms meet.

Read from top to bottom: what is decided on the host, what is loaded, what is wired to what.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_jax.config import EngineConfig, hub_cache, program_cache
from rtp_jax.delivery.delivery import Delivery, Finished
from rtp_jax.engine.defaults import default_params
from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.engine.loop import EngineLoop, StepTimes, Stop
from rtp_jax.engine.records import Records
from rtp_jax.engine.requests import RequestBuilder
from rtp_jax.engine.submission import Submission
from rtp_jax.engine.weights_memory import ITEMSIZE, bytes_per_number
from rtp_jax.errors import FailedPrecondition, Unavailable
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.models.registry import read_spec
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.kv_schemes import KVLayers, kv_layers
from rtp_jax.quant.schemes import Scheme, schemes_of
from rtp_jax.runner.buckets import lattice
from rtp_jax.runner.device import DeviceFacts, find_device
from rtp_jax.runner.memory_plan import MemoryPlan, ModelMemory, plan_memory
from rtp_jax.runner.programs import make_private
from rtp_jax.runner.runner import Runner
from rtp_jax.runner.start import RunnerPlan, start_runner
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.admission import Limits
from rtp_jax.scheduler.scheduler import Scheduler
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer
from rtp_jax.weights.convert import aligned
from rtp_jax.weights.files import read_json
from rtp_jax.weights.fingerprint import fingerprint
from rtp_jax.weights.locate import find_model
from rtp_jax.weights.reserve import Reserve

# And flax, which only checkpoints that come quantized need before their programs are compiled.
matrices = late("rtp_jax.models.quantized_matrices")
chats = late("rtp_jax.text.chat")  # and jinja2, which an engine without a tokenizer does not need

Progress = Callable[[str], None]
ENDED = Unavailable("RTPJ-4007 ENGINE_CLOSED: the engine was closed before the request ended.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A built engine, in pieces."""

    loop: EngineLoop
    delivery: Delivery
    submission: Submission
    scheduler: Scheduler
    runner: Runner
    metrics: Metrics
    info: ModelInfo
    tokenizer: Tokenizer | None
    templates: dict[str, Any]  # of `ChatTemplate`, by name
    default_params: SamplingParams

    def close(self) -> None:
        """End the threads, in the direction of the tokens, and free the device."""
        self.submission.stop()
        self.loop.close()
        self.delivery.end_rest(ENDED)
        self.delivery.close()
        self.runner.close()

    def loads(self) -> Loads:
        """Say how busy the engine is; numbers may be a step old."""
        return Loads(**self.scheduler.loads(), num_open_requests=self.delivery.num_open)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """What is settled before anything large is loaded."""

    name: str
    folder: Path
    spec: ModelSpec
    facts: DeviceFacts
    dtype: str
    kv: KVLayers
    memory: MemoryPlan
    tokenizer: Tokenizer | None
    templates: dict[str, Any]  # of `ChatTemplate`, by name
    default_params: SamplingParams


def build(
    model: str,
    config: EngineConfig,
    *,
    progress: Progress,
    metrics: Metrics | None,
    memory: Reserve,
) -> Parts:
    """Build an engine that is ready to serve; `memory` is where its weights may go."""
    decided = decide(model, config)
    runner = start(decided, config, progress=progress, memory=memory)
    metrics = metrics or Metrics(model_name=decided.name)
    parts = _wire(config, decided, runner, metrics)
    parts.loop.start()
    report = runner.compile_report
    for _ in report.compiled:
        metrics.on_compile(seconds=report.seconds / len(report.compiled))
    metrics.program_cache_hits += len(report.loaded)
    progress(
        f"ready: {len(report.compiled)} programs compiled, {len(report.loaded)} loaded,"
        f" in {report.seconds:.1f} s; steps of {', '.join(parts.info.buckets)} tokens x sequences"
    )
    metrics.ready = True
    return parts


def start(
    decided: Decided, config: EngineConfig, *, progress: Progress, memory: Reserve | None = None
) -> Runner:
    """Show the memory plan, load the weights and compile."""
    for line in decided.memory.table().splitlines():
        progress(line)
    plan = _runner_plan(config, decided, progress)
    allocate = aligned if memory is None else memory.take
    return start_runner(
        decided.folder, decided.spec, plan, decided.facts, progress, allocate=allocate
    )


def decide(model: str, config: EngineConfig) -> Decided:
    """Resolve everything that `None` and `auto` leave open; reads small files only."""
    folder = find_model(model, hub_cache=hub_cache())
    spec = read_spec(read_json(folder / "config.json"))
    _check_quantization(spec, config)
    facts = find_device(config.runner.platform)
    dtype = facts.best_dtype if config.model.dtype == "auto" else config.model.dtype
    kv_dtype = dtype if config.cache.kv_dtype == "auto" else config.cache.kv_dtype
    kv = kv_layers(spec.num_layers, kv_dtype, config.cache.kv_layers)
    tokenizer = None
    if not config.model.skip_tokenizer_init:
        tokenizer = load_tokenizer(Path(config.model.tokenizer or folder))
    return Decided(
        name=config.model.served_model_name or _short_name(model),
        folder=folder,
        spec=spec,
        facts=facts,
        dtype=dtype,
        kv=kv,
        memory=plan_memory(
            model_memory(spec, _schemes(config), dtype, kv),
            model=config.model,
            cache=config.cache,
            scheduler=config.scheduler,
            platform=facts.platform,
            free_device_bytes=facts.free_bytes,
        ),
        tokenizer=tokenizer,
        templates=chats.load_chat_templates(folder) if tokenizer is not None else {},
        default_params=default_params(folder),
    )


def _check_quantization(spec: ModelSpec, config: EngineConfig) -> None:
    """Refuse to quantize what the checkpoint has quantized already."""
    if spec.quantization is None:
        return
    asked, head = config.model.quantization, config.model.head_quantization
    if asked is None and (head == "auto" or not matrices.head_is_quantized(spec)):
        return
    field = "quantization" if asked is not None else "head_quantization"
    raise FailedPrecondition(
        f"RTPJ-6022 ALREADY_QUANTIZED: {field}={asked or head} was asked for, and the checkpoint is"
        f" quantized ({spec.quantization.method}). Leave {field} out to run it as it is.",
        field=field,
    )


def _schemes(config: EngineConfig) -> tuple[Scheme, Scheme]:
    return schemes_of(config.model.quantization, config.model.head_quantization)


def model_memory(
    spec: ModelSpec, schemes: tuple[Scheme, Scheme], dtype: str, kv: KVLayers
) -> ModelMemory:
    """Tell the memory plan about a model whose layers and head have these schemes."""
    itemsize = ITEMSIZE[dtype]
    of_matrices, of_head = map(bytes_per_number, schemes)
    if spec.quantization is not None:
        of_matrices, as_loaded = matrices.matrix_bytes(spec, itemsize)
        of_head = of_head or as_loaded
    return ModelMemory(
        weight_bytes=spec.weight_bytes(itemsize, of_matrices, of_head),
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        mlp_size=spec.mlp_size,
        vocab_size=spec.vocab_size,
        max_positions=spec.max_positions,
        itemsize=itemsize,
        kv=kv,
    )


def _runner_plan(config: EngineConfig, decided: Decided, progress: Progress) -> RunnerPlan:
    scheduler, spec = config.scheduler, decided.spec
    known = spec.vocab_size if decided.tokenizer is None else decided.tokenizer.vocab_size
    return RunnerPlan(
        dtype=decided.dtype,
        schemes=_schemes(config),
        attention=config.runner.attention,
        matmul=config.runner.matmul,
        skip_padding=not config.model.deterministic,
        kv=decided.kv,
        num_pages=decided.memory.num_pages,
        page_size=decided.memory.page_size,
        max_model_len=decided.memory.max_model_len,
        num_slots=scheduler.max_num_seqs,
        vocab_size=min(known, spec.vocab_size),
        buckets=lattice(
            scheduler.max_num_batched_tokens,
            scheduler.max_num_seqs,
            deterministic=config.model.deterministic,
        ),
        native=config.runner.native,
        compile_cache=_program_folder(config, progress),
    )


def _program_folder(config: EngineConfig, progress: Progress) -> Path | None:
    """Make the folder of compiled programs; only one that was asked for must be there."""
    folder = program_cache(config.runner)
    try:
        if folder is not None:
            make_private(folder)
    except OSError as error:
        if config.runner.compile_cache is not None:
            raise FailedPrecondition(
                f"RTPJ-4108 CACHE_NOT_WRITABLE: compile_cache={str(folder)!r} cannot be made"
                f" ({error.strerror}). Choose another folder, or '' to keep no programs.",
                field="compile_cache",
            ) from error
        progress(f"compiled programs are not kept: {folder} cannot be made ({error.strerror})")
        return None
    return folder


def _wire(config: EngineConfig, decided: Decided, runner: Runner, metrics: Metrics) -> Parts:
    """Connect scheduler, loop, delivery and the way in."""
    tokenizer, print_of_model = decided.tokenizer, fingerprint(decided.folder)
    scheduler = _scheduler(config, decided, runner, print_of_model)
    records = Records(metrics, scheduler, model=decided.name, dump_failed=config.runner.dump_failed)

    def on_stop(request_id: str, index: int, num_output_tokens: int) -> None:
        loop.send(Stop(request_id, index, num_output_tokens))

    def on_finished(end: Finished) -> None:
        submission.left(end.request)
        records.finished(end)

    def on_step(times: StepTimes) -> None:
        records.step(times)
        records.loads(parts.loads())

    delivery = Delivery(on_stop=on_stop, on_finished=on_finished)

    def on_end() -> None:
        delivery.put(scheduler.abort_all(ENDED))
        delivery.end_rest(ENDED)

    loop = EngineLoop(scheduler, runner, deliver=delivery.put, record=on_step, on_end=on_end)
    eos, limits = _eos_ids(decided), _limits(runner)
    submission = Submission(
        builder=RequestBuilder(
            tokenizer=tokenizer, limits=limits, eos_token_ids=eos, seed=config.model.seed
        ),
        loop=loop,
        delivery=delivery,
        tokenizer=tokenizer,
        max_open=config.scheduler.max_num_seqs + config.scheduler.max_waiting,
        record_refusal=records.refused,
    )
    parts = Parts(
        loop=loop,
        delivery=delivery,
        submission=submission,
        scheduler=scheduler,
        runner=runner,
        metrics=metrics,
        info=_info(config, decided, runner, eos, print_of_model),
        tokenizer=tokenizer,
        templates=decided.templates,
        default_params=decided.default_params,
    )
    return parts


def _scheduler(
    config: EngineConfig, decided: Decided, runner: Runner, print_of_model: str
) -> Scheduler:
    shapes = runner.shapes
    return Scheduler(
        config.scheduler,
        num_pages=decided.memory.num_pages,
        page_size=shapes.page_size,
        max_model_len=shapes.max_model_len,
        vocab_size=shapes.padded_vocab_size,
        page_key=(config.cache.page_key or print_of_model).encode(),
        model_epoch=print_of_model,
        kv_scheme=decided.kv.describe(),
        prefix_caching=config.cache.enable_prefix_caching,
        max_logit_rows=config.scheduler.max_num_seqs,
    )


def _limits(runner: Runner) -> Limits:
    shapes = runner.shapes
    return Limits(
        max_model_len=shapes.max_model_len,
        vocab_size=shapes.vocab_size,
        num_pages=shapes.num_pages,
        page_size=shapes.page_size,
    )


def _eos_ids(decided: Decided) -> frozenset[int]:
    known = () if decided.tokenizer is None else decided.tokenizer.eos_ids
    return frozenset(known) | frozenset(decided.spec.eos_token_ids)


def _info(
    config: EngineConfig,
    decided: Decided,
    runner: Runner,
    eos: frozenset[int],
    print_of_model: str,
) -> ModelInfo:
    shapes = runner.shapes
    return ModelInfo(
        name=decided.name,
        architecture=decided.spec.architecture,
        vocab_size=shapes.vocab_size,
        max_model_len=shapes.max_model_len,
        dtype=decided.dtype,
        kv_dtype=decided.kv.describe(),
        page_size=shapes.page_size,
        num_pages=decided.memory.num_pages,
        max_num_seqs=config.scheduler.max_num_seqs,
        eos_token_ids=tuple(sorted(eos)),
        default_sampling_params=decided.default_params,
        fingerprint=print_of_model,
        epoch=secrets.token_hex(8),
        platform=decided.facts.platform,
        num_parameters=decided.spec.num_parameters,
        buckets=tuple(map(str, shapes.buckets)),
    )


def _short_name(model: str) -> str:
    """Show the last part of a folder, and a hub name as it is."""
    return Path(model).name if Path(model).is_dir() else model
