"""What an engine lets a router follow: what its pages depend on, its pages, its steps.

`serving/worker_state.py` sends it.  Everything here may be called from any thread.
"""

import itertools
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from rtp_jax.cache.page_events import PageEvents
from rtp_jax.config import EngineConfig
from rtp_jax.engine.loop import StepTimes
from rtp_jax.page_record import KvLayout
from rtp_jax.request import StepRow

MAX_SAMPLES = 256


class StepSample(NamedTuple):
    """One step as it was measured."""

    prefill_tokens: int
    num_decoding: int
    context_tokens: int  # of all sequences in the step
    seconds: float  # from its launch, or the end of the step before, to its results


class StepSamples:
    """The latest steps; the oldest are forgotten."""

    def __init__(self, max_samples: int = MAX_SAMPLES):
        self._lock = threading.Lock()
        self._kept: deque[StepSample] = deque(maxlen=max_samples)
        self._num_steps = 0

    def add(self, times: StepTimes) -> None:
        """Take a committed step, from the engine's thread; nothing of its plan is kept."""
        sample = _sample(times)
        with self._lock:
            self._kept.append(sample)
            self._num_steps += 1

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return self._num_steps

    def since(self, number: int) -> tuple[list[StepSample], int]:
        """Return the steps from a number on that are still known, and the number of the next."""
        with self._lock:
            first = max(number - (self._num_steps - len(self._kept)), 0)
            return list(itertools.islice(self._kept, first, None)), self._num_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """An engine as a router follows it."""

    page_key: bytes  # these three and a cache salt make page identities
    model_epoch: str
    kv_scheme: str
    prefix_caching: bool
    max_num_batched_tokens: int
    pages: PageEvents
    steps: StepSamples = field(default_factory=StepSamples)


def watched_engine(
    config: EngineConfig, fingerprint: str, layout: KvLayout, pages: PageEvents
) -> Watched:
    """Make what a new engine lets others follow."""
    return Watched(
        page_key=(config.cache.page_key or fingerprint).encode(),
        model_epoch=layout.model_epoch,
        kv_scheme=layout.kv_scheme,
        prefix_caching=config.cache.enable_prefix_caching,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        pages=pages,
    )


def _sample(times: StepTimes) -> StepSample:
    rows = times.plan.rows
    num_decoding = sum(map(decodes, rows))
    return StepSample(
        times.plan.num_tokens - num_decoding,
        num_decoding,
        sum(row.start + row.count for row in rows),
        times.device_s,
    )


def decodes(row: StepRow) -> bool:
    """Tell a row that feeds a generated token from one that prefills."""
    return row.count == 1 and row.start >= row.sequence.num_prompt
