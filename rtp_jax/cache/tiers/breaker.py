"""Is something that has failed worth another try?  Not at once, and later again.

closed --THRESHOLD failures in a row--> open --a while--> tried again --failure--> open, longer
   ↑------------------------------------------------------------ success ------------'
"""

import threading

THRESHOLD = 3  # failures in a row
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Breaker:
    """Counts failures; safe for several threads."""

    def __init__(self):
        self.num_openings = 0
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._pause_s = FIRST_PAUSE_S
        self._until_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Say whether it is worth a try."""
        with self._lock:
            return self._failures < THRESHOLD or now_s >= self._until_s

    def success(self) -> None:
        """Trust it again."""
        with self._lock:
            self._failures, self._pause_s = 0, FIRST_PAUSE_S

    def failure(self, now_s: float) -> None:
        """Count a failure; after the last of a row it is left alone for a while."""
        with self._lock:
            self._failures += 1
            if self._failures < THRESHOLD or now_s < self._until_s:
                return
            self.num_openings += 1
            self._until_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
