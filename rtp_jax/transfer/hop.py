"""Is asking a peer worth its time?  Only if computing here takes longer than the asking itself.

What asking costs is learned by asking, so what was learned is forgotten again: else a few slow
answers would be the last ones.
"""

import threading
import time
from collections.abc import Callable

WEIGHT = 0.2  # of the newest measurement, at least
HALVED_S = 10.0  # in which what is known comes to count half
ROUND_TRIPS = 2  # an offer, and the first page


class Hop:
    """What asking costs, from the time that peers took to answer."""

    def __init__(self, min_tokens: int | None, clock: Callable[[], float] = time.monotonic):
        """Skip the hop below so many tokens; None: find out how many."""
        self._min_tokens, self._clock = min_tokens, clock
        self._offered_s = 0.0  # nothing is known: try it
        self._at_s = clock()
        self._lock = threading.Lock()

    def observe(self, offered_s: float) -> None:
        """Take the seconds after which a peer answered an offer."""
        with self._lock:
            keep = (1 - WEIGHT) * self._faded() if self._offered_s else 0.0
            self._offered_s = keep * self._offered_s + (1 - keep) * offered_s
            self._at_s = self._clock()

    def is_worth_it(self, num_tokens: int, compute_s: float | None) -> bool:
        """Say whether to ask for tokens that would take `compute_s` here, if that is known."""
        if self._min_tokens is not None:
            return num_tokens >= self._min_tokens
        with self._lock:
            expected_s = self._offered_s * self._faded()
        return compute_s is None or compute_s > ROUND_TRIPS * expected_s

    def _faded(self) -> float:
        return 0.5 ** ((self._clock() - self._at_s) / HALVED_S)
