"""Threads that run when they are told to, in the order of their work: so no test is random."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future


class Deferred(Executor):
    """Threads that run when they are told to, in the order of their work: no test is random."""

    def __init__(self):
        self._work: deque[tuple[Future, Callable[[], object]]] = deque()

    def submit(self, fn, /, *args, **kwargs):
        self._work.append((future := Future(), lambda: fn(*args, **kwargs)))
        return future

    def map(self, fn, *iterables, timeout=None, chunksize=1):
        return map(fn, *iterables)

    def run(self, most: int = 1_000_000) -> None:
        while self._work and most > 0:
            future, work = self._work.popleft()
            future.set_result(work())
            most -= 1

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.run()
