"""Staging: memory in which bytes wait until they are placed; a ring, because parts go as they come.

|   free   | oldest | ... | newest |   free   |
"""

from collections import deque

import numpy as np

from rtp_jax.weights.convert import aligned

BYTE = np.dtype(np.uint8)
BOUNDARY = 64  # bytes, as `aligned` has them
LARGE = 4  # what is more than one part in four of the ring gets memory of its own


class Staging:
    """So many bytes, and besides one piece at a time that is too large for them."""

    def __init__(self, num_bytes: int):
        self.ring = aligned((num_bytes,), BYTE)  # takes memory only where it is written
        self.taken: deque[tuple[int, int] | None] = deque()  # ranges of the ring; None: a large one
        self.ranges: deque[tuple[int, int]] = deque()

    def take(self, num_bytes: int) -> np.ndarray | None:
        """Take memory on a 64-byte boundary; None while there is no room."""
        if num_bytes > self.ring.size // LARGE:
            if None in self.taken:
                return None
            self.taken.append(None)
            return aligned((num_bytes,), BYTE)
        begin = self._begin(max(num_bytes + -num_bytes % BOUNDARY, BOUNDARY))
        if begin is None:
            return None
        found = begin, begin + max(num_bytes + -num_bytes % BOUNDARY, BOUNDARY)
        self.taken.append(found)
        self.ranges.append(found)
        return self.ring[begin : begin + num_bytes]

    def _begin(self, size: int) -> int | None:
        """Find room in the ring: after the newest, or else before the oldest."""
        if not self.ranges:
            return 0
        (oldest, _), (newest, end) = self.ranges[0], self.ranges[-1]
        if newest >= oldest and end + size <= self.ring.size:
            return end
        begin = 0 if newest >= oldest else end
        return begin if begin + size <= oldest else None

    def give_back_oldest(self) -> None:
        """Free what was taken first, which nobody looks at any more."""
        if self.taken.popleft() is not None:
            self.ranges.popleft()
