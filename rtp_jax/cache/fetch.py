"""Pages on their way to one parked sequence: read, checked and staged on a thread for I/O.

Pages arrive in order, each from the first tier that has it.  A tier that stops short is not asked
again by this fetch; what no tier brings ends it.  Every record is checked against the identity and
the token ids that the sequence expects, and against its digest, before its bytes go anywhere.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rtp_jax.cache.tiers.tier import Tier, Wanted
from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.stop import Stop

Stage = Callable[[Sequence[bytes | memoryview]], Any]  # payloads to what the runner writes
PART_BYTES = 16 << 20  # that one thread checks and stages at a time
LARGE_BYTES = 4 << 20  # from which on another thread is worth it


class CopySizes(Protocol):
    """How much is staged at once."""

    @property
    def largest_copy(self) -> int:
        """Pages, at most."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Staged payloads of consecutive pages."""

    staged: Any
    tiers: tuple[str, ...]  # where each came from


@dataclass(frozen=True, slots=True)
class Loaded:
    """Consecutive pages that have arrived."""

    first: int  # which page of the sequence is the first of them
    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        return sum(len(batch.tiers) for batch in self.batches)

    def behind(self, num_pages: int) -> int:
        """Count those of use to a sequence that has its first pages already."""
        return max(self.first + len(self) - num_pages, 0) if self.first <= num_pages else 0

    def tokens(self, num_pages: int, page_size: int) -> dict[str, int]:
        """Count the tokens in the device's first pages and in those behind them, by tier."""
        used = ["device"] * num_pages
        if self.behind(num_pages):
            came = [tier for batch in self.batches for tier in batch.tiers]
            used += came[num_pages - self.first :]
        return {tier: count * page_size for tier, count in Counter(used).items()}


class Part(NamedTuple):
    """Consecutive records: how many, how many of these before the first broken one, and staged."""

    num_read: int
    num_sound: int
    staged: Any


@dataclass(frozen=True, slots=True)
class TierRead:
    """What one tier brought to a fetch."""

    tier: Tier
    num_pages: int
    seconds: float
    corrupt: bool
    short: bool


class Fetch:
    """One parked sequence's pages."""

    def __init__(
        self,
        wanted: Wanted,
        tiers: Sequence[Tier],
        stage: Stage,
        sizes: CopySizes,
        checkers: Executor,
        give_up_s: float,
    ):
        self.wanted = wanted
        self.give_up_s = give_up_s  # when the sequence starts with what is there
        self.stop = Stop()
        self.done = False
        self._tiers, self._stage, self._largest = tiers, stage, sizes.largest_copy
        self._checkers = checkers
        self._batches: list[Batch] = []  # appended by one thread, read by another

    def loaded(self) -> Loaded:
        """Return what has arrived so far."""
        return Loaded(self.wanted.first, tuple(self._batches))

    def run(self) -> Iterator[TierRead]:
        """Bring the pages; yields once for each tier that was read."""
        at, failed = 0, set()
        while at < len(self.wanted) and not self.stop.is_set():
            rest = self.wanted.after(at)
            asked = (tier for tier in self._tiers if tier.name not in failed)
            found = next(((tier, n) for tier in asked if (n := tier.holds(rest))), None)
            if found is None:
                return
            read = self._read(found[0], rest.upto(found[1]))
            at += read.num_pages
            if read.short:
                failed.add(read.tier.name)
            yield read

    def _read(self, tier: Tier, wanted: Wanted) -> TierRead:
        """Keep what one tier has, up to the first broken record."""
        began, at, corrupt = time.perf_counter(), 0, False
        for part in _in_order(self._parts(tier, wanted)):
            if part.num_sound:
                self._batches.append(Batch(part.staged, (tier.name,) * part.num_sound))
            at += part.num_sound
            if part.num_sound < part.num_read:
                tier.reject(wanted.keys[at])
                corrupt = True
                break
        seconds = time.perf_counter() - began
        return TierRead(tier, at, seconds, corrupt, at < len(wanted))

    def _parts(self, tier: Tier, wanted: Wanted) -> Iterator[Future[Part]]:
        """Read records, and have each part of them checked and staged."""
        records: list[PageRecord] = []
        num_read = 0
        for record in tier.read(wanted, self.stop):
            records.append(record)
            num_read += 1
            whole = num_read == len(wanted) or self.stop.is_set()
            if whole or len(records) == max(
                min(self._largest, PART_BYTES // max(len(record.payload), 1)), 1
            ):
                yield self._begin(tier, wanted.after(num_read - len(records)), records)
                records = []
            if whole:
                return
        if records:
            yield self._begin(tier, wanted.after(num_read - len(records)), records)

    def _begin(self, tier: Tier, wanted: Wanted, records: list[PageRecord]) -> Future[Part]:
        """Check and stage records: here, or on another thread if they are large."""
        checked = tier.checks()

        def work() -> Part:
            sound = 0
            while sound < len(records) and wanted.accepts(sound, records[sound], checked=checked):
                sound += 1
            payloads = [record.payload for record in records[:sound]]
            return Part(len(records), sound, self._stage(payloads) if payloads else None)

        if sum(len(record.payload) for record in records) >= LARGE_BYTES:
            return self._checkers.submit(work)
        future: Future[Part] = Future()
        future.set_result(work())
        return future


def _in_order(parts: Iterator[Future[Part]]) -> Iterator[Part]:
    """Yield results in their order as soon as they are there, while later work has begun."""
    pending: deque[Future[Part]] = deque()
    for part in parts:
        pending.append(part)
        while pending and pending[0].done():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
