"""What has a scheduler done so far, and how fast?"""

from collections import Counter
from dataclasses import dataclass, field

from rtp_jax.request import StepPlan


@dataclass(slots=True)
class Counters:
    """Counts since the start; they only grow."""

    steps: int = 0
    mixed_steps: int = 0  # with decode rows and prefill rows
    decode_rows: int = 0
    chunks: int = 0  # prefill rows
    chunk_tokens: int = 0
    query_tokens: int = 0  # prompt tokens looked up in the prefix cache
    hit_tokens: int = 0  # prompt tokens found there
    tier_hit_tokens: Counter[str] = field(default_factory=Counter)  # the same by tier
    preemptions: int = 0
    evictions: int = 0  # pages that the prefix index lost to make room
    surplus_tokens: int = 0  # sampled for sequences that had ended already

    def count_plan(self, plan: StepPlan, num_decoding: int) -> None:
        """Count a plan, whose decode rows come first."""
        chunks = len(plan.rows) - num_decoding
        self.steps += 1
        self.mixed_steps += chunks > 0 and num_decoding > 0
        self.decode_rows += num_decoding
        self.chunks += chunks
        if chunks:
            self.chunk_tokens += sum(row.count for row in plan.rows[num_decoding:])


class Pace:
    """How often a request leaves the queue; says when to come back to a full one."""

    SHORTEST_S, LONGEST_S, UNKNOWN_S = 0.05, 60.0, 1.0
    WEIGHT = 0.1  # of the newest interval

    def __init__(self):
        self._last_s: float | None = None
        self._interval_s: float | None = None

    def tick(self, now_s: float) -> None:
        """Note that a request has been admitted."""
        if self._last_s is not None:
            interval_s = max(now_s - self._last_s, 0.0)
            mean_s = interval_s if self._interval_s is None else self._interval_s
            self._interval_s = mean_s + self.WEIGHT * (interval_s - mean_s)
        self._last_s = now_s

    def retry_after_s(self) -> float:
        """Estimate when the queue has room for one more."""
        if self._interval_s is None:
            return self.UNKNOWN_S
        return min(max(self._interval_s, self.SHORTEST_S), self.LONGEST_S)
