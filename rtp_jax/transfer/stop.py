"""How is somebody told to stop who waits on another thread, perhaps for the network?"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """A wish, set once; whoever waits for something meanwhile says what wakes it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._is_set = False
        self._wakes: dict[int, Callable[[], object]] = {}

    def is_set(self) -> bool:
        """True once somebody wished it."""
        return self._is_set

    def set(self) -> None:
        """Wish it, from any thread, and wake whoever waits; may be called again."""
        with self._lock:
            self._is_set = True
            wakes = list(self._wakes.values())
        for wake in wakes:
            wake()

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called if the wish comes, or has come, while a block runs."""
        with self._lock:
            self._wakes[id(wake)] = wake
            late = self._is_set
        try:
            if late:
                wake()
            yield
        finally:
            with self._lock:
                del self._wakes[id(wake)]
