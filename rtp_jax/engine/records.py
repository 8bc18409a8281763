"""What is counted and logged of steps and requests: one line for each request, never its text."""

import logging
from pathlib import Path

from rtp_jax.delivery.delivery import Finished
from rtp_jax.engine.info import Loads
from rtp_jax.engine.loop import StepTimes
from rtp_jax.engine.replay import write_record
from rtp_jax.engine.watched import decodes
from rtp_jax.errors import Internal
from rtp_jax.metrics import Metrics, RequestStats, StepStats
from rtp_jax.scheduler.scheduler import Scheduler

logger = logging.getLogger("rtp_jax.requests")


class Records:
    """Writes to an engine's metrics and to its request log."""

    def __init__(
        self, metrics: Metrics, scheduler: Scheduler, *, model: str, dump_failed: str | None
    ):
        self._metrics = metrics
        self._scheduler = scheduler
        self._model = model
        self._dump_failed = dump_failed

    def step(self, times: StepTimes) -> None:
        """Count a committed step; on the engine's thread."""
        prefill = sum(row.count for row in times.plan.rows if not decodes(row))
        tokens = times.plan.num_tokens
        metrics, counters = self._metrics, self._scheduler.counters
        metrics.on_step(
            StepStats(
                num_prefill_tokens=prefill,
                num_decode_tokens=tokens - prefill,
                num_padded_tokens=times.bucket[0],
                schedule_s=times.schedule_s,
                prepare_s=times.prepare_s,
                dispatch_s=times.dispatch_s,
                wait_s=times.wait_s,
                commit_s=times.commit_s,
            )
        )
        metrics.compile_after_ready = times.compiles
        metrics.prefix_cache_queries = counters.query_tokens
        metrics.prefix_cache_hits = counters.hit_tokens
        metrics.num_preemptions = counters.preemptions
        metrics.tier_hits = counters.tier_hit_tokens
        metrics.num_parked = self._scheduler.num_parked

    def loads(self, loads: Loads) -> None:
        """Show how busy the engine is."""
        self._metrics.set_loads(
            num_running=loads.num_running,
            num_waiting=loads.num_waiting,
            num_pages=loads.num_pages,
            num_free_pages=loads.num_free_pages,
            num_cached_pages=loads.num_cached_pages,
        )

    def refused(self) -> None:
        """Count a request that was not admitted."""
        self._metrics.requests_refused += 1

    def finished(self, end: Finished) -> None:
        """Count a request that ended, and log it; on the delivery thread."""
        request, timing, metrics = end.request, end.timing, self._metrics
        metrics.on_request_finished(
            RequestStats(
                finished_reason=end.reason,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=end.num_output_tokens,
                num_cached_tokens=end.num_cached_tokens,
                queue_s=timing.queue_s,
                first_token_s=timing.first_token_s,
                total_s=timing.total_s or 0.0,
                max_tokens=request.max_tokens,
                n=request.params.n,
            )
        )
        if isinstance(end.error, Internal):
            metrics.request_faults += 1
            if self._dump_failed:
                write_record(Path(self._dump_failed), request, end.error, self._model)
        log = logger.info if end.error is None else logger.warning
        log(
            "request %s %s: %d prompt tokens (%d cached), %d output tokens, %s%s",
            request.id,
            end.reason,
            len(request.prompt_token_ids),
            end.num_cached_tokens,
            end.num_output_tokens,
            _seconds(
                ("queued", timing.queue_s),
                ("ttft", timing.first_token_s),
                ("total", timing.total_s),
            ),
            "" if end.error is None else f", {end.error.id} {end.error.name}",
        )


def _seconds(*spans: tuple[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3f} s" for name, value in spans if value is not None)
