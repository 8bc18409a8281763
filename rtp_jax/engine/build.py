"""Builds an engine: the one place where the rooms meet.

Read from top to bottom: what is decided on the host, what is loaded, what is wired to what.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_jax.cache.tiers.peer import PeerTier
from rtp_jax.config import EngineConfig, hub_cache
from rtp_jax.delivery.delivery import Delivery, Finished
from rtp_jax.engine.decided import Decided, info_of
from rtp_jax.engine.defaults import default_params
from rtp_jax.engine.direct import check_room, check_transport, direct_of
from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.engine.kv_tiers import Below, check_tiers, epoch_of_pages, tiers_of
from rtp_jax.engine.loop import Arrived, EngineLoop, StepTimes, Stop
from rtp_jax.engine.records import Records
from rtp_jax.engine.requests import RequestBuilder
from rtp_jax.engine.runner_plan import runner_plan
from rtp_jax.engine.sharing import in_one_memory, mesh_of, share
from rtp_jax.engine.submission import Submission
from rtp_jax.engine.transfer import Transfer, exchanges_pages
from rtp_jax.engine.watched import Watched, watched_engine
from rtp_jax.engine.weights_memory import ITEMSIZE, chosen_bytes, packs
from rtp_jax.errors import FailedPrecondition, Unavailable
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.models.registry import read_spec
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.kv_schemes import KVLayers, kv_layers
from rtp_jax.quant.schemes import Scheme, schemes_of
from rtp_jax.runner.device import find_devices
from rtp_jax.runner.memory_plan import MemoryPlan, plan_memory
from rtp_jax.runner.runner import Runner
from rtp_jax.runner.start import start_runner
from rtp_jax.runner.workspace import ModelMemory
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.admission import Limits
from rtp_jax.scheduler.scheduler import Scheduler
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.hop import Hop
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
    memory: MemoryPlan
    info: ModelInfo
    tokenizer: Tokenizer | None
    templates: dict[str, Any]  # of `ChatTemplate`, by name
    default_params: SamplingParams
    watched: Watched
    below: Below
    transfer: Transfer

    def close(self) -> None:
        """End the threads, in the direction of the tokens, and free the device."""
        self.submission.stop()
        self.loop.close()
        self.delivery.end_rest(ENDED)
        self.delivery.close()
        self.runner.close()
        self.below.close()  # and with it who still takes pages of others
        self.transfer.close()

    def loads(self) -> Loads:
        """Say how busy the engine is; numbers may be a step old."""
        return Loads(
            **self.scheduler.loads(),
            num_open_requests=self.delivery.num_open,
            num_offers=self.transfer.offers.counts.open,
        )


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
    check_tiers(config.cache)
    check_transport(config)
    with ExitStack() as undo:
        direct = direct_of(config)
        if direct is not None:
            undo.callback(direct.close)
        runner = start(decided, config, progress=progress, memory=memory)
        undo.callback(runner.close)
        metrics = metrics or Metrics(model_name=decided.name)
        parts = _wire(config, decided, runner, metrics, direct, undo)
        undo.pop_all()
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
    plan = runner_plan(config, decided, _schemes(config), progress)
    allocate = aligned if memory is None else memory.take
    return start_runner(
        decided.folder, decided.spec, plan, decided.facts, progress, allocate=allocate
    )


def decide(model: str, config: EngineConfig) -> Decided:
    """Resolve everything that `None` and `auto` leave open; reads small files only."""
    folder = find_model(model, hub_cache=hub_cache())
    spec = read_spec(read_json(folder / "config.json"))
    _check_quantization(spec, config)
    shape = mesh_of(spec, config.runner.tensor_parallel_size)
    facts = find_devices(config.runner.platform, shape)
    dtype = facts.best_dtype if config.model.dtype == "auto" else config.model.dtype
    kv_dtype = dtype if config.cache.kv_dtype == "auto" else config.cache.kv_dtype
    kv = kv_layers(spec.num_layers, kv_dtype, config.cache.kv_layers)
    sizes = model_memory(
        spec, _schemes(config), dtype, kv, packed=packs(config.runner, facts.platform)
    )
    of_memory = in_one_memory if facts.platform == "cpu" else share
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
            of_memory(sizes, spec, shape),
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
    spec: ModelSpec,
    schemes: tuple[Scheme, Scheme],
    dtype: str,
    kv: KVLayers,
    *,
    packed: bool = False,
) -> ModelMemory:
    """Tell the memory plan about a model whose layers and head have these schemes.

    `packed` says whether the native kernels are to multiply by its matrices.
    """
    itemsize = ITEMSIZE[dtype]
    of_matrices, of_head = chosen_bytes(spec, schemes, itemsize, packed=packed)
    if spec.quantization is not None:
        of_matrices, as_loaded = matrices.matrix_bytes(spec, itemsize, packed=packed)
        of_head = of_head if schemes[1].is_quantized else as_loaded
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


def _wire(
    config: EngineConfig,
    decided: Decided,
    runner: Runner,
    metrics: Metrics,
    direct: Direct | None,
    undo: ExitStack,
) -> Parts:
    """Connect scheduler, loop, delivery and the way in; what has threads is closed by `undo`."""
    tokenizer, print_of_model = decided.tokenizer, fingerprint(decided.folder)
    below = _below(config, decided, runner, print_of_model, lambda: parts)
    undo.callback(below.close)
    check_room(config, below.layout.page_bytes)
    metrics.kv_tiers = below.figures
    watched = watched_engine(config, print_of_model, below.layout, below.events)
    scheduler = _scheduler(config, decided, runner, watched, below)
    records = Records(metrics, scheduler, model=decided.name, dump_failed=config.runner.dump_failed)

    def on_stop(request_id: str, index: int, num_output_tokens: int) -> None:
        loop.send(Stop(request_id, index, num_output_tokens))

    def on_finished(end: Finished) -> None:
        submission.left(end.request)
        records.finished(end)

    def on_step(times: StepTimes) -> None:
        records.step(times)
        watched.steps.add(times)
        below.step(times, metrics)
        parts.transfer.show_counts()
        records.loads(parts.loads())

    delivery = Delivery(on_stop=on_stop, on_finished=on_finished)
    undo.callback(delivery.close)

    def on_end() -> None:
        delivery.put(scheduler.abort_all(ENDED))
        scheduler.close()
        delivery.end_rest(ENDED)

    loop = EngineLoop(scheduler, runner, deliver=delivery.put, record=on_step, on_end=on_end)
    submission = _submission(config, decided, runner, loop, delivery, _eos_ids(decided), records)
    info = info_of(config, decided, runner, _eos_ids(decided), print_of_model)
    parts = Parts(
        transfer=Transfer(config, below, info.epoch, submission, metrics, direct),
        loop=loop,
        delivery=delivery,
        submission=submission,
        scheduler=scheduler,
        runner=runner,
        metrics=metrics,
        memory=decided.memory,
        info=info,
        tokenizer=tokenizer,
        templates=decided.templates,
        default_params=decided.default_params,
        watched=watched,
        below=below,
    )
    return parts


def _below(
    config: EngineConfig,
    decided: Decided,
    runner: Runner,
    print_of_model: str,
    parts: Callable[[], Parts],
) -> Below:
    """Build the tiers below the device; other workers are one of them.

    `parts` returns the engine that is being built, once it is.
    """
    exchanges = exchanges_pages(config)
    peer = PeerTier(
        lambda: parts().transfer,
        page_size=runner.shapes.page_size,
        hop=Hop(config.transfer.transfer_min_tokens),
        least_stall_s=config.transfer.transfer_stall_s,
        compute_s=lambda num_tokens: below.prefill_s(num_tokens),
    )
    below = tiers_of(
        config.cache,
        runner,
        model_epoch=epoch_of_pages(print_of_model, decided.dtype, _schemes(config)),
        kv_scheme=decided.kv.describe(),
        on_arrival=lambda: parts().loop.send(Arrived()),
        sources=[peer] if exchanges else [],
        source_bytes=config.transfer.transfer_bytes if exchanges else 0,
    )
    return below


def _submission(
    config: EngineConfig,
    decided: Decided,
    runner: Runner,
    loop: EngineLoop,
    delivery: Delivery,
    eos: frozenset[int],
    records: Records,
) -> Submission:
    return Submission(
        builder=RequestBuilder(
            tokenizer=decided.tokenizer,
            limits=_limits(runner),
            eos_token_ids=eos,
            seed=config.model.seed,
        ),
        loop=loop,
        delivery=delivery,
        tokenizer=decided.tokenizer,
        max_open=config.scheduler.max_num_seqs + config.scheduler.max_waiting,
        record_refusal=records.refused,
    )


def _scheduler(
    config: EngineConfig, decided: Decided, runner: Runner, watched: Watched, below: Below
) -> Scheduler:
    shapes = runner.shapes
    return Scheduler(
        config.scheduler,
        num_pages=decided.memory.num_pages,
        page_size=shapes.page_size,
        max_model_len=shapes.max_model_len,
        vocab_size=shapes.padded_vocab_size,
        page_key=watched.page_key,
        model_epoch=watched.model_epoch,
        kv_scheme=watched.kv_scheme,
        prefix_caching=watched.prefix_caching,
        max_logit_rows=config.scheduler.max_num_seqs,
        page_events=watched.pages,
        hierarchy=below.hierarchy,
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


def _short_name(model: str) -> str:
    """Show the last part of a folder, and a hub name as it is."""
    return Path(model).name if Path(model).is_dir() else model
