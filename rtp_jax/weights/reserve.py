"""Memory for weights, made ready by a thread while the process does something else.

The first touch of new memory is slow: the system finds and zeroes a page, and under a virtual
machine whose host took free memory back, the host does so as well.  For the weights of a model that
can take longer than reading them, and importing jax leaves a core idle for more than a second.

    | taken by parameters ... | touched ... | not touched yet ... |
                              ^ taken       ^ touching

Until the first array is taken, memory is written.  From then on the system is asked to make pages
ready as they are (`MADV_POPULATE_WRITE`, Linux 5.14), because others write there.  That holds the
lock of the address space, so libraries that are being opened would wait for it; hence not before.

Read next: `loader.py`, which takes its arrays from here.
"""

import ctypes
import math
import mmap
import sys
from threading import Event, Lock, Thread

import numpy as np

from rtp_jax.weights.convert import aligned

SMALLEST = 64 << 20  # bytes from which on it is worth the while
STEP = 32 << 20  # bytes that are touched at a time: some ten milliseconds
SLACK = 4 << 20  # bytes for the boundaries on which memory and arrays begin
HUGE_PAGE = 2 << 20
MADV_DONTNEED, MADV_HUGEPAGE, MADV_POPULATE_WRITE = 4, 14, 23  # of Linux
BOUNDARY = 64  # bytes, as in `aligned`


class Reserve:
    """So many bytes, from which arrays are taken one after the other; 0 bytes: none are.

    Arrays keep the memory alive.  What nobody took goes back to the system at the end.
    """

    def __init__(self, num_bytes: int):
        """Begin to make the memory ready."""
        is_worth_it = num_bytes >= SMALLEST and sys.platform == "linux"
        size = num_bytes + SLACK if is_worth_it else 0
        self._memory = aligned((size,), np.dtype(np.uint8))
        self._address = self._memory.ctypes.data
        self._end = self._memory.size
        self._taken = min(-self._address % HUGE_PAGE, self._end)  # offset of what is free
        self._lock = Lock()
        self._is_wanted, self._is_written = Event(), Event()
        self._stop = Event()
        self._thread = Thread(target=self._touch, args=(self._taken,), name="touch", daemon=True)
        if is_worth_it:
            self._thread.start()
        else:
            self._is_written.set()

    def __enter__(self) -> "Reserve":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and give back what was not taken."""
        self._is_wanted.set()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        start = self._address + self._taken
        start += -start % HUGE_PAGE
        length = self._address + self._end - start
        length -= length % mmap.PAGESIZE  # of the last page others may have a part
        if length > 0:
            _advise(start, length, MADV_DONTNEED)
        self._end = self._taken

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array whose contents are anything; of other memory if too little is left."""
        num_bytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            begin, end = self._taken, self._taken + num_bytes
            if end > self._end:
                return aligned(shape, dtype)
            self._taken = end + -end % BOUNDARY
        self._is_wanted.set()
        self._is_written.wait()
        return self._memory[begin:end].view(dtype).reshape(shape)

    def _touch(self, offset: int) -> None:
        """Have the system supply all pages, from `offset` on."""
        _advise(self._address + offset, self._end - offset, MADV_HUGEPAGE)  # may be refused
        while offset < self._end and not self._is_wanted.is_set():
            count = min(STEP, self._end - offset)
            ctypes.memset(self._address + offset, 0, count)
            offset += count
        self._is_written.set()
        while offset < self._end and not self._stop.is_set():
            count = min(STEP, self._end - offset)
            if _advise(self._address + offset, count, MADV_POPULATE_WRITE):
                return  # an older system
            offset += count


def _advise(address: int, num_bytes: int, advice: int) -> int:
    """Call madvise, which returns 0 if it was taken; the GIL is free meanwhile."""
    return ctypes.CDLL(None).madvise(
        ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), ctypes.c_int(advice)
    )
