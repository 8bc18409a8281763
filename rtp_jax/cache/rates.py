"""What does it cost?  A line through what was measured: seconds = latency + amount x seconds each.

Fitted by least squares in which each new measurement makes all earlier ones count a little less.
"""

import threading

DECAY = 0.9  # weight of what was known before a new measurement
SPREAD = 0.05  # of the amounts, relative to their mean, from which on a latency can be told
RELAXED = 0.98  # what an estimate is multiplied with each time it loses, so that it is tried again


class LinearCost:
    """Seconds of some work by its amount; safe for several threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, amount: float, seconds: float) -> None:
        """Take a measurement."""
        with self._lock:
            self._weight = self._weight * DECAY + 1
            self._x = self._x * DECAY + amount
            self._y = self._y * DECAY + seconds
            self._xx = self._xx * DECAY + amount * amount
            self._xy = self._xy * DECAY + amount * seconds

    def estimate(self, amount: float) -> float | None:
        """Predict the seconds of some work; None: nothing was measured yet."""
        with self._lock:
            if self._weight == 0 or self._x == 0:
                return None
            latency, each = self._line()
            return latency + each * amount

    def relax(self) -> None:
        """Expect a little less than before."""
        with self._lock:
            self._y *= RELAXED
            self._xy *= RELAXED

    def _line(self) -> tuple[float, float]:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance > (SPREAD * mean_x) ** 2:
            each = (self._xy / self._weight - mean_x * mean_y) / variance
            latency = mean_y - each * mean_x
            if each >= 0 and latency >= 0:
                return latency, each
        return 0.0, mean_y / mean_x
