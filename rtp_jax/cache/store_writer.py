"""Writes records to a slow store, on a thread of its own and with a bounded queue.

What does not fit the queue is not written: a store that cannot keep up costs hits, never memory
and never a step.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor

from rtp_jax.cache.tiers.tier import Store
from rtp_jax.page_record import PageRecord


class StoreWriter:
    """One store, one thread."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        most_bytes: int,
        on_written: Callable[[Store, PageRecord, list[PageRecord]], None],
    ):
        """Write in the order of `offer`: the executor, which this owns, has one thread."""
        self._store, self._most_bytes, self._on_written = store, most_bytes, on_written
        self._executor = executor
        self._lock = threading.Lock()
        self._queued: set[bytes] = set()
        self._bytes = 0
        self._closing = False

    @property
    def is_busy(self) -> bool:
        """True while records are queued or being written."""
        return bool(self._queued)

    def offer(self, record: PageRecord) -> bool:
        """Queue a record; False: too much is queued already."""
        size = len(record.payload)
        with self._lock:
            if record.key in self._queued:
                return True
            if self._closing or (self._queued and self._bytes + size > self._most_bytes):
                return False
            self._queued.add(record.key)
            self._bytes += size
            self._executor.submit(self._write, record)
        return True

    def close(self) -> None:
        """Write what is queued, and end the thread."""
        with self._lock:
            self._closing = True
        self._executor.shutdown(wait=True)

    def _write(self, record: PageRecord) -> None:
        try:
            self._on_written(self._store, record, self._store.write(record))
        finally:
            with self._lock:
                self._queued.discard(record.key)
                self._bytes -= len(record.payload)
