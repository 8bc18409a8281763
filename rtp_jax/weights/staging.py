"""Staging: memory in which bytes wait until they are converted, used again and of bounded size."""

from collections import defaultdict

import numpy as np

from rtp_jax.weights.convert import aligned

BYTE = np.dtype(np.uint8)


class Staging:
    """Buffers of which at most `limit` bytes are taken at a time, or one of any size."""

    def __init__(self, limit: int):
        self.limit, self.taken = limit, 0
        self.idle: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # by size
        self.idle_bytes = 0

    def take(self, num_bytes: int) -> np.ndarray | None:
        """Take a buffer of at least `num_bytes`, on a 64-byte boundary; None while there is none.

        Sizes are powers of two, so that buffers serve again; what is not touched takes no memory.
        """
        size = 1 << max(num_bytes - 1, 4095).bit_length()
        if self.taken and self.taken + size > self.limit:
            return None
        self.taken += size
        if self.idle[size]:
            self.idle_bytes -= size
            return self.idle[size].pop()
        if self.taken + self.idle_bytes > self.limit:
            self.idle.clear()
            self.idle_bytes = 0
        return aligned((size,), BYTE)

    def give_back(self, buffer: np.ndarray) -> None:
        """Return a buffer that nobody looks at any more."""
        self.taken -= buffer.nbytes
        if self.taken + self.idle_bytes + buffer.nbytes <= self.limit:
            self.idle[buffer.nbytes].append(buffer)
            self.idle_bytes += buffer.nbytes
