"""Pages that workers share: a store on the network, where a page computed anywhere is found by all.

Names begin with the fingerprint of the layout, so that workers whose pages differ never meet.
Gets go in batches, each with a time-out of `BASE_S` and its bytes at the rate that was measured.  A
store that fails, or returns what is no page, is left alone by a circuit breaker; one that is full
is not written for a while.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

from rtp_jax.cache.tiers.breaker import Breaker
from rtp_jax.cache.tiers.leaf_lru import LeafLru
from rtp_jax.cache.tiers.record_bytes import head_of, record_from, size_of
from rtp_jax.cache.tiers.redis_store import RemoteFailed
from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.stop import Stop

BASE_S = 0.1
FIRST_RATE = 100e6  # bytes per second, until it is measured
SLOWEST_RATE = 5e6  # a time-out never expects less
NEWEST = 0.3  # weight of the newest measurement
BATCH_BYTES, BATCH_PAGES = 8 << 20, 32
FULL_S = 10.0  # how long a full store is not written
MAX_KNOWN = 200_000  # pages of others that are remembered


class Values(Protocol):
    """A store of values by name; what can go wrong is `RemoteFailed`."""

    def get(self, names: list[str], timeout_s: float) -> list[bytes | None]:
        """Get values; None where there is none."""
        ...

    def put(self, name: str, value: bytes, timeout_s: float) -> bool:
        """Set a value unless there is one; False: the store is full."""
        ...

    def drop(self, names: list[str], timeout_s: float) -> None:
        """Forget values."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


class RemoteTier:
    """Records under names in a shared store."""

    name = "remote"

    def __init__(
        self, values: Values, fingerprint: bytes, page_bytes: int, budget_bytes: int | None
    ):
        self.breaker = Breaker()
        self._values, self._page_bytes, self._budget = values, page_bytes, budget_bytes
        self._prefix = f"rtp_jax:kv:{fingerprint.hex()}:"
        self._lock = threading.Lock()
        self._own = LeafLru()  # what this worker wrote, for its budget
        self._known: OrderedDict[bytes, None] = OrderedDict()  # what was read or found there
        self._rate = FIRST_RATE
        self._full_until_s = 0.0

    def holds(self, wanted: Wanted) -> int:
        """Count all pages, as anybody may have written them, unless the store is left alone."""
        return len(wanted) if self.breaker.allows(time.monotonic()) else 0

    def keeps(self, key: bytes) -> bool:
        """Say whether a page is known to be there, or could not be written now."""
        now_s = time.monotonic()
        with self._lock:
            if key in self._own or key in self._known or now_s < self._full_until_s:
                return True
        return not self.breaker.allows(now_s)

    def read(self, wanted: Wanted, stop: Stop) -> Iterator[PageRecord]:
        """Yield what is there, a batch at a time; a batch that fails is the last one."""
        size = max(min(BATCH_BYTES // self._page_bytes, BATCH_PAGES), 1)
        for start in range(0, len(wanted), size):
            keys = wanted.keys[start : start + size]
            values = None if stop.is_set() else self._get(keys)
            if values is None:
                return
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    self._forget_known(key)
                    return
                if (record := record_from(value)) is None:
                    self.reject(key)
                    return
                self._know(key)
                yield record

    def write(self, record: PageRecord) -> list[PageRecord]:
        """Put a record there, if it can be done in time; nothing is passed on."""
        if self.keeps(record.key):
            return []
        value, size = b"".join((head_of(record), record.payload)), size_of(record)
        try:
            taken = self._values.put(self._name(record.key), value, self.timeout_s(1))
        except RemoteFailed:
            self.breaker.failure(time.monotonic())
            return [record]
        # That it takes pages does not mean that it gives any: only reading closes the breaker.
        if not taken:
            with self._lock:
                self._full_until_s = time.monotonic() + FULL_S
            return [record]
        with self._lock:
            self._own.add(record.key, record.parent, size)
            leaving = self._over_budget()
        self._drop(leaving)
        return []

    def write_back(self, records: Sequence[PageRecord], until_s: float) -> int:
        """Put records there until a time; return how many are new."""
        count = 0
        for record in records:
            if time.monotonic() >= until_s:
                break
            count += not (self.keeps(record.key) or self.write(record))
        return count

    def reject(self, key: bytes) -> None:
        """Take a broken record away; a store that returns such things is not to be relied on."""
        self.breaker.failure(time.monotonic())
        self.forget([key])

    def forget(self, keys: list[bytes]) -> None:
        """Take records away, for everybody."""
        with self._lock:
            for key in keys:
                self._own.remove(key)
                self._known.pop(key, None)
        self._drop(keys)

    def clear(self) -> None:
        """Keep everything: it belongs to all workers."""

    def timeout_s(self, num_pages: int) -> float:
        """Allow a fixed time, and the bytes at the measured rate."""
        return BASE_S + num_pages * self._page_bytes / max(self._rate, SLOWEST_RATE)

    def checks(self) -> bool:
        """Digests are left to whoever reads."""
        return False

    def compares(self) -> bool:
        """Reading is weighed against computing."""
        return True

    def usage(self) -> tuple[int, int]:
        """Count the records that this worker wrote, and their bytes."""
        return len(self._own), self._own.total_bytes

    def close(self) -> None:
        """Give connections back; the pages stay."""
        self._values.close()

    def _get(self, keys: tuple[bytes, ...]) -> list[bytes | None] | None:
        """Get one batch; None: it failed."""
        began = time.monotonic()
        try:
            values = self._values.get([self._name(key) for key in keys], self.timeout_s(len(keys)))
        except RemoteFailed:
            self.breaker.failure(time.monotonic())
            return None
        seconds = max(time.monotonic() - began, 1e-6)
        self.breaker.success()
        if num_bytes := sum(len(value) for value in values if value is not None):
            self._rate += NEWEST * (num_bytes / seconds - self._rate)
        return values

    def _drop(self, keys: list[bytes]) -> None:
        if not keys or not self.breaker.allows(time.monotonic()):
            return
        try:
            self._values.drop([self._name(key) for key in keys], BASE_S)
        except RemoteFailed:
            self.breaker.failure(time.monotonic())

    def _over_budget(self) -> list[bytes]:
        """Choose what leaves; the lock is held."""
        leaving = []
        while self._budget is not None and self._own.total_bytes > self._budget:
            key = self._own.oldest()
            assert key is not None, "a tier without leaves is empty"
            self._own.remove(key)
            leaving.append(key)
        return leaving

    def _know(self, key: bytes) -> None:
        with self._lock:
            self._known[key] = None
            self._known.move_to_end(key)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _forget_known(self, key: bytes) -> None:
        """Somebody dropped a page; it may be written again."""
        with self._lock:
            self._known.pop(key, None)
            self._own.remove(key)

    def _name(self, key: bytes) -> str:
        return self._prefix + key.hex()
