"""Is asking a peer worth its time?  Only if computing here takes longer than the asking itself."""

import threading

WEIGHT = 0.2  # of the newest measurement
ROUND_TRIPS = 2  # an offer, and the first page


class Hop:
    """What asking costs, from the time that peers took to answer."""

    def __init__(self, min_tokens: int | None):
        """Skip the hop below so many tokens; None: find out how many."""
        self._min_tokens = min_tokens
        self._offered_s: float | None = None
        self._lock = threading.Lock()

    def observe(self, offered_s: float) -> None:
        """Take the seconds after which a peer answered an offer."""
        with self._lock:
            known = offered_s if self._offered_s is None else self._offered_s
            self._offered_s = known + WEIGHT * (offered_s - known)

    def is_worth_it(self, num_tokens: int, compute_s: float | None) -> bool:
        """Say whether to ask for tokens that would take `compute_s` here, if that is known."""
        if self._min_tokens is not None:
            return num_tokens >= self._min_tokens
        if compute_s is None or self._offered_s is None:
            return True
        return compute_s > ROUND_TRIPS * self._offered_s
