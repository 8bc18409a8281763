"""Which pages move between the device and the tiers below it?

    down   a page that the device gives up goes to host memory, and what host memory has no room
           for goes on to disk and to the remote store; a page that was hit often goes to all
    up     a waiting sequence that lacks pages fetches them while it is parked, fastest tier first

All here is called by the engine's thread and never waits: reading, checking and staging happens on
threads for I/O, writing to slow stores on one thread for each.  A fetch brings as many pages as
arrive in time, in order; the rest is computed.  Read next: `fetch.py`, `tiers/tier.py`, and
`scheduler/parking.py` for the sequences that wait.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rtp_jax.cache.fetch import Fetch, Stage
from rtp_jax.cache.rates import LinearCost
from rtp_jax.cache.store_writer import StoreWriter
from rtp_jax.cache.tiers.host import HostTier
from rtp_jax.cache.tiers.tier import LastingStore, Store, Tier, Wanted
from rtp_jax.page_record import PageRecord, Sink
from rtp_jax.request import EVERY_TIER, Reuse

logger = logging.getLogger(__name__)
IO_THREADS, CHECKERS = 4, 2
SOURCE_THREADS = 28  # besides, if there are sources: they take as long as somebody's prefill
SLOWEST_CHECK = 100e6  # bytes per second that are read, hashed and staged, when all is busy


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchyOptions:
    """How pages move."""

    page_size: int  # tokens
    page_bytes: int
    largest_copy: int  # pages that are staged at once
    staging_bytes: int  # on their way up at most, and as many on their way down
    write_hits: int | None = None  # hits after which a page is written; None: when it is evicted
    load: str = "auto"  # or "always": whatever it costs
    flush_s: float = 0.0  # that `close` may take to copy host memory to the store below it


@dataclass(slots=True)
class TierCounters:
    """Counts of one tier since the start."""

    pages_read: int = 0
    pages_written: int = 0
    pages_dropped: int = 0  # not written because too much was on its way
    pages_corrupt: int = 0
    reads_short: int = 0  # ended before what was expected
    declined: int = 0  # runs of pages that were computed because that is cheaper


@dataclass(slots=True)
class HierarchyCounters:
    """Counts since the start; guarded by the hierarchy's lock where several threads write."""

    tiers: dict[str, TierCounters] = field(default_factory=dict)
    fetches: int = 0
    timeouts: int = 0  # fetches whose sequence started without all that was on its way


class Hierarchy:
    """The tiers of one engine, and everything that is on its way between them."""

    def __init__(
        self,
        stores: Sequence[Store],
        options: HierarchyOptions,
        *,
        stage: Stage,
        on_arrival: Callable[[], None],
        sources: Sequence[Tier] = (),
        threads: Callable[[int, str], Executor] = ThreadPoolExecutor,
    ):
        """Own some tiers.

        Args:
          stores: that can be written, fastest first.
          options: how pages move.
          stage: makes of at most `largest_copy` payloads what the runner writes to pages.
          on_arrival: called on another thread each time a fetch has ended.
          sources: tiers that are only read, asked after the stores.
          threads: makes so many threads of a name, to run what would block.
        """
        self.options = options
        self.stores = tuple(stores)
        self.tiers: tuple[Tier, ...] = (*stores, *sources)
        self.prefill_cost = LinearCost()  # by tokens
        self.load_cost = {tier.name: LinearCost() for tier in self.tiers}  # by bytes
        self.counters = HierarchyCounters({tier.name: TierCounters() for tier in self.tiers})
        self._stage, self._on_arrival = stage, on_arrival
        self._lock = threading.Lock()
        self._bytes_up = self._bytes_down = 0
        self._reading: set[bytes] = set()  # pages on their way from the device
        self._limited: dict[bytes, Reuse] = {}  # of records whose requests refuse some tiers
        self._writers = {
            store.name: StoreWriter(
                store, threads(1, f"rtp-write-{store.name}"), options.staging_bytes, self._written
            )
            for store in self.stores
            if store.name != "host"
        }
        self._executor = threads(IO_THREADS + (SOURCE_THREADS if sources else 0), "rtp-fetch")
        self._checkers = threads(CHECKERS, "rtp-check")
        self._fetches: set[Fetch] = set()

    # ---- up

    def has_room(self, num_pages: int) -> bool:
        """Say whether so many pages may be on their way up, or as many as there ever may be."""
        num_bytes = min(num_pages * self.options.page_bytes, self._most_bytes)
        return self._bytes_up + num_bytes <= self._most_bytes

    def worth_loading(self, wanted: Wanted, num_uncached: int) -> int:
        """Count the pages, from the first on, that are cheaper to load than to compute.

        What loading and computing take together decides.  Costs are lines, so the best number is
        where the pages of some tier end.

        Args:
          wanted: pages behind those that the device has.
          num_uncached: tokens that the sequence computes if nothing is loaded.
        """
        runs = self._runs(wanted)
        total = sum(size for _, size in runs)
        compared = any(tier.compares() for tier, _ in runs)
        best, best_s = 0, self.prefill_cost.estimate(num_uncached)
        if not compared or best_s is None or self.options.load == "always":
            return total  # if nothing is known yet, loading is what measures it
        loading_s, count = 0.0, 0
        for tier, size in runs:
            num_bytes = size * self.options.page_bytes
            loading_s += self.load_cost[tier.name].estimate(num_bytes) or 0.0
            count += size
            left = max(num_uncached - count * self.options.page_size, 1)
            seconds = loading_s + (self.prefill_cost.estimate(left) or 0.0)
            if seconds < best_s:
                best, best_s = count, seconds
        self._note_declined(runs, best)
        return best

    def fetch(self, wanted: Wanted, now_s: float) -> Fetch:
        """Begin to bring pages that are worth it; as many as there is room for, at least one."""
        assert self.has_room(1), f"{self._bytes_up} bytes are on their way"
        room = (self._most_bytes - self._bytes_up) // self.options.page_bytes
        wanted = wanted.upto(min(len(wanted), room))
        patience_s = sum(self._patience_s(tier, size) for tier, size in self._runs(wanted))
        with self._lock:
            self._bytes_up += len(wanted) * self.options.page_bytes
            self.counters.fetches += 1
        fetch = Fetch(
            wanted,
            self._allowed(wanted),
            self._stage,
            self.options,
            self._checkers,
            now_s + patience_s,
        )
        self._fetches.add(fetch)
        future = self._executor.submit(self._run, fetch)
        future.add_done_callback(functools.partial(self._log_failure, fetch))
        return fetch

    def release(self, fetch: Fetch) -> None:
        """End a fetch: its sequence has started, or will not; the staged bytes are free to go."""
        if fetch not in self._fetches:
            return
        self._fetches.discard(fetch)
        fetch.stop.set()
        with self._lock:
            self.counters.timeouts += not fetch.done
            self._bytes_up -= len(fetch.wanted) * self.options.page_bytes

    # ---- down

    def reader(self, key: bytes, reuse: Reuse, *, through: bool = False) -> Sink | None:
        """Say who wants the record of a page of the device; None: nobody.

        Args:
          key: identity of the page.
          reuse: tiers that it may go to.
          through: it stays on the device, so all stores want it, and not only host memory.
        """
        stores = [store for store in self.stores if reuse.allows(store.name)]
        if not through and stores and stores[0].name == "host":
            stores = stores[:1]
        targets = [store for store in stores if not store.keeps(key)]
        if not targets:
            return None
        with self._lock:
            if key in self._reading:
                return None
            if self._bytes_down + self.options.page_bytes > self._most_bytes:
                for store in targets:
                    self.counters.tiers[store.name].pages_dropped += 1
                return None
            self._bytes_down += self.options.page_bytes
            self._reading.add(key)
        return functools.partial(self._take, key, reuse, targets)

    def forget(self, keys: list[bytes]) -> None:
        """Drop pages that hold what they should not."""
        with self._lock:
            for key in keys:
                self._limited.pop(key, None)
        for store in self.stores:
            store.forget(keys)

    def clear(self) -> None:
        """Drop all pages that belong to this engine alone."""
        with self._lock:
            self._limited.clear()
        for store in self.stores:
            store.clear()

    # ---- as a whole

    @property
    def is_idle(self) -> bool:
        """True if nothing is on its way."""
        writing = any(writer.is_busy for writer in self._writers.values())
        with self._lock:
            return not (self._fetches or self._reading or writing)

    @property
    def bytes_on_their_way(self) -> int:
        """Bytes of staging in use, both ways."""
        return self._bytes_up + self._bytes_down

    def usage(self) -> dict[str, tuple[int, int]]:
        """Count the records of each store, and their bytes."""
        return {store.name: store.usage() for store in self.stores}

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; for tests, benchmarks and an orderly end."""
        until = time.monotonic() + timeout_s
        while not self.is_idle and time.monotonic() < until:
            time.sleep(0.001)
        return self.is_idle

    def close(self) -> None:
        """End all threads; what was handed to slow stores is still written, for a while."""
        for fetch in self._fetches:
            fetch.stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._checkers.shutdown(wait=True)
        for writer in self._writers.values():
            writer.close()
        self._flush()
        for store in self.stores:
            store.close()

    def _flush(self) -> None:
        """Write what only host memory has to the store below it, which outlives this process."""
        until_s = time.monotonic() + self.options.flush_s
        host, below = (*self.stores, None, None)[:2]
        if not (isinstance(host, HostTier) and isinstance(below, LastingStore)):
            return
        reuse_of = self._limited
        records = host.newest()
        records = [r for r in records if reuse_of.get(r.key, EVERY_TIER).allows(below.name)]
        self.counters.tiers[below.name].pages_written += below.write_back(records, until_s)

    # ---- inside

    @property
    def _most_bytes(self) -> int:
        return max(self.options.staging_bytes, self.options.page_bytes)

    def _patience_s(self, tier: Tier, num_pages: int) -> float:
        """Say how long a sequence waits: what the medium is allowed, and our part in it twice over.

        A medium that hangs ends the fetch much earlier, by its own time-out.
        """
        num_bytes = num_pages * self.options.page_bytes
        ours_s = 2 * (self.load_cost[tier.name].estimate(num_bytes) or 0.0)
        return tier.timeout_s(num_pages) + max(ours_s, num_bytes / SLOWEST_CHECK)

    def _allowed(self, wanted: Wanted) -> list[Tier]:
        reuse = wanted.request.reuse
        return [tier for tier in self.tiers if reuse.allows(tier.name)]

    def _runs(self, wanted: Wanted) -> list[tuple[Tier, int]]:
        """Split pages into runs, each with the fastest tier that has them."""
        runs, at, tiers = [], 0, self._allowed(wanted)
        while at < len(wanted):
            rest = wanted.after(at)
            found = next(((tier, n) for tier in tiers if (n := tier.holds(rest))), None)
            if found is None:
                break
            runs.append(found)
            at += found[1]
        return runs

    def _note_declined(self, runs: list[tuple[Tier, int]], best: int) -> None:
        """Count the runs that are computed instead, and expect a little less of their tiers.

        Otherwise a tier that was slow once would never be measured again.
        """
        at = 0
        for tier, size in runs:
            if at >= best and tier.compares():
                self.load_cost[tier.name].relax()
                self.counters.tiers[tier.name].declined += 1
            at += size

    def _run(self, fetch: Fetch) -> None:
        """Bring pages; on a thread for I/O."""
        try:
            for done in fetch.run():
                counters = self.counters.tiers[done.tier.name]
                with self._lock:
                    counters.pages_read += done.num_pages
                    counters.pages_corrupt += done.corrupt
                    counters.reads_short += done.short
                if done.num_pages and done.tier.compares():
                    num_bytes = done.num_pages * self.options.page_bytes
                    self.load_cost[done.tier.name].observe(num_bytes, done.seconds)
        finally:
            fetch.done = True
            self._on_arrival()

    def _log_failure(self, fetch: Fetch, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            logger.error("fetching pages of %s failed", fetch.wanted.request.id, exc_info=error)

    def _take(
        self, key: bytes, reuse: Reuse, targets: list[Store], record: PageRecord | None
    ) -> None:
        """Take the record of a page from the device, on the runner's thread."""
        try:
            if record is not None:
                for store in targets:
                    self._put(store, record, reuse)
        finally:
            with self._lock:
                self._bytes_down -= self.options.page_bytes
                self._reading.discard(key)

    def _put(self, store: Store, record: PageRecord, reuse: Reuse) -> None:
        writer = self._writers.get(store.name)
        if writer is not None:
            if not writer.offer(record):
                with self._lock:
                    self.counters.tiers[store.name].pages_dropped += 1
            return
        with self._lock:
            if reuse != EVERY_TIER:
                self._limited[record.key] = reuse
        self._written(store, record, store.write(record))

    def _written(self, store: Store, record: PageRecord, left: list[PageRecord]) -> None:
        """Count what a store took; what left host memory for its sake goes on to the others."""
        kept = not any(each is record for each in left)
        with self._lock:
            self.counters.tiers[store.name].pages_written += kept
        if store.name != "host":
            return
        for each in left:
            with self._lock:
                reuse = self._limited.pop(each.key, EVERY_TIER)
            for below in self.stores[1:]:
                if reuse.allows(below.name) and not below.keeps(each.key):
                    self._put(below, each, reuse)
