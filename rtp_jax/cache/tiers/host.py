"""Pages in the memory of this process: the first tier below the device."""

import threading
from collections.abc import Iterator

from rtp_jax.cache.page_events import TierEvents
from rtp_jax.cache.tiers.leaf_lru import LeafLru
from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.stop import Stop

OVERHEAD = 512  # bytes of a record besides its payload and token ids
PATIENCE_S = 10.0  # memory is never slow; a machine may be


class HostTier:
    """Records in a dictionary, within a budget."""

    name = "host"

    def __init__(self, budget_bytes: int, told: TierEvents | None = None):
        self._budget = budget_bytes
        self._records: dict[bytes, PageRecord] = {}
        self._told = told  # of what comes and goes, for routers
        self._order = LeafLru(told)
        if told is not None:
            told.holds(lambda: self._order.keys())
        self._lock = threading.Lock()

    def holds(self, wanted: Wanted) -> int:
        """Count the pages from the first on that are here."""
        with self._lock:
            for count, key in enumerate(wanted.keys):
                if key not in self._records:
                    return count
        return len(wanted)

    def keeps(self, key: bytes) -> bool:
        """Say whether a page is here."""
        with self._lock:
            return key in self._records

    def read(self, wanted: Wanted, stop: Stop) -> Iterator[PageRecord]:
        """Yield what is here."""
        with self._lock:
            self._order.touch(list(wanted.keys))
        for key in wanted.keys:
            with self._lock:
                record = self._records.get(key)
            if record is None or stop.is_set():
                return
            yield record

    def write(self, record: PageRecord) -> list[PageRecord]:
        """Keep a record; return those that no longer fit."""
        size = len(record.payload) + len(record.packed) + OVERHEAD
        with self._lock:
            if record.key in self._records:
                return []
            if size > self._budget:
                return [record]
            left = self._make_room(size)
            self._records[record.key] = record
            self._order.add(record.key, record.parent, size)
            return left

    def newest(self) -> list[PageRecord]:
        """List what is here: what was used last comes first, and parents before children."""
        with self._lock:
            return [self._records[key] for key in self._order.newest()]

    def reject(self, key: bytes) -> None:
        """Drop a record."""
        self.forget([key])

    def forget(self, keys: list[bytes]) -> None:
        """Drop records."""
        with self._lock:
            for key in keys:
                self._order.remove(key)
                self._records.pop(key, None)

    def clear(self) -> None:
        """Drop all records."""
        with self._lock:
            self._order = LeafLru(self._told)
            self._records.clear()
            if self._told is not None:
                self._told.cleared()

    def timeout_s(self, num_pages: int) -> float:
        """Say how long a sequence may wait."""
        return PATIENCE_S

    def checks(self) -> bool:
        """Digests are left to whoever reads."""
        return False

    def compares(self) -> bool:
        """Reading is weighed against computing."""
        return True

    def usage(self) -> tuple[int, int]:
        """Count records and their bytes."""
        return len(self._records), self._order.total_bytes

    def close(self) -> None:
        """Give the memory back."""
        self.clear()

    def _make_room(self, size: int) -> list[PageRecord]:
        left = []
        while self._order.total_bytes + size > self._budget:
            key = self._order.oldest()
            assert key is not None, "a tier without leaves is empty"
            self._order.remove(key)
            left.append(self._records.pop(key))
        return left
