"""What is a runner made for?  What was decided, and what the settings say about compiling."""

from collections.abc import Callable
from pathlib import Path

from rtp_jax.config import EngineConfig, program_cache
from rtp_jax.engine.decided import Decided
from rtp_jax.engine.transfer import exchanges_pages
from rtp_jax.errors import FailedPrecondition
from rtp_jax.quant.schemes import Scheme
from rtp_jax.runner.buckets import lattice
from rtp_jax.runner.programs import make_private
from rtp_jax.runner.start import RunnerPlan


def runner_plan(
    config: EngineConfig,
    decided: Decided,
    schemes: tuple[Scheme, Scheme],
    progress: Callable[[str], None],
) -> RunnerPlan:
    """Put together what a runner is made for; `schemes` are those of the layers and the head."""
    scheduler, spec = config.scheduler, decided.spec
    known = spec.vocab_size if decided.tokenizer is None else decided.tokenizer.vocab_size
    return RunnerPlan(
        dtype=decided.dtype,
        schemes=schemes,
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
        moves_pages=config.cache.has_tiers or exchanges_pages(config),
    )


def _program_folder(config: EngineConfig, progress: Callable[[str], None]) -> Path | None:
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
