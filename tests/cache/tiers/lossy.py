"""A store that loses pages, breaks them and stops short, as often as chance has it."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace

from rtp_jax.cache.tiers.tier import Store, Wanted
from rtp_jax.page_record import PageRecord

SHARE = 0.15  # of pages, for each kind of trouble


class LossyStore:
    """Another store, with trouble."""

    name = "remote"

    def __init__(self, store: Store, *, seed: int):
        self._store, self._random = store, random.Random(seed)

    def holds(self, wanted: Wanted) -> int:
        return self._store.holds(wanted)

    def keeps(self, key: bytes) -> bool:
        return self._store.keeps(key)

    def read(self, wanted: Wanted, stop: threading.Event) -> Iterator[PageRecord]:
        for record in self._store.read(wanted, stop):
            chance = self._random.random()
            if chance < SHARE:
                return
            if chance < 2 * SHARE:
                record = replace(record, payload=bytes(len(record.payload)))
            yield record

    def write(self, record: PageRecord) -> list[PageRecord]:
        return [record] if self._random.random() < SHARE else self._store.write(record)

    def reject(self, key: bytes) -> None:
        self._store.reject(key)

    def forget(self, keys: list[bytes]) -> None:
        self._store.forget(keys)

    def clear(self) -> None:
        self._store.clear()

    def timeout_s(self, num_pages: int) -> float:
        return self._random.choice([0.005, 0.02, 10.0])

    def checks(self) -> bool:
        """Digests are left to whoever reads."""
        return False

    def compares(self) -> bool:
        return True

    def usage(self) -> tuple[int, int]:
        return self._store.usage()

    def close(self) -> None:
        self._store.close()
