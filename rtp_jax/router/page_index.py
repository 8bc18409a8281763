"""Which workers hold the pages of a prompt?  One dictionary, from a short key to a bit mask.

A worker has a *slot*: four bits of each mask, one for each tier and one for pages that it is
about to compute.  Masks of many pages are equal, so they share one object; a key is kept as the
first 60 bits of a page identity, for two pages that agree in those cost a wrong prediction and no
more.  With 32 workers a page takes 74 bytes (`python -m bench.router_decisions`).

A worker that ends, restarts or sends a snapshot gets a new slot at once; bits of the old one are
ignored, and swept out a few thousand pages at a time.  Read next: `worker_view.py`.
"""

import collections
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rtp_jax.router.facts import EventKind, PageEvents, Tier

KEY_BYTES = 16
KEY_MASK = (1 << 60) - 1  # what fits into the smallest two-digit integer of Python
SLOT_BITS = 4
EXPECTED = 3  # the bit behind those of the tiers
SLOT_MASK = (1 << SLOT_BITS) - 1
SWEEP_PAGES = 4096  # a call cleans at most so many
MAX_SHARED_MASKS = 1 << 16
TRIM_SHARE = 64  # of the pages, that go at once when there are too many
NOTHING = 0


class Held(NamedTuple):
    """The longest prefix of a prompt that one worker holds, in pages."""

    pages: int
    host: int = 0  # of them on the host and no faster tier
    disk: int = 0
    expected: int = 0  # of them not computed yet


@dataclass(slots=True)
class _Feed:
    """How far the events of a worker have come."""

    slot: int
    next_event: int = 0  # 0: only a snapshot will do
    in_snapshot: bool = False
    counts: list[int] = field(default_factory=lambda: [0] * SLOT_BITS)


class PageIndex:
    """Finds the longest known prefix per worker; forgets the oldest pages past a bound."""

    def __init__(self, max_pages: int = 4_000_000):
        self.max_pages = max_pages
        self.num_forgotten = 0  # pages that went because there were too many
        self._masks: dict[int, int] = {}  # short key -> who holds the page
        self._shared: dict[int, int] = {}  # equal masks are one object
        self._feeds: dict[str, _Feed] = {}
        self._worker_of: dict[int, str] = {}  # by slot
        self._live = 0  # the lowest bit of each slot that has a worker
        self._free_slots: list[int] = []
        self._num_slots = 0
        self._dead = 0  # all bits of slots that wait to be swept
        self._dead_slots: list[int] = []
        self._sweep: Iterator[int] | None = None
        self._swept: tuple[int, list[int]] = (0, [])  # bits and slots of the sweep on its way

    def __len__(self) -> int:
        return len(self._masks)

    def open(self, worker_id: str) -> None:
        """Begin a life of a worker: nothing is known of its pages."""
        self.close(worker_id)
        self._feeds[worker_id] = _Feed(self._take_slot(worker_id))

    def close(self, worker_id: str) -> None:
        """Forget a worker."""
        if feed := self._feeds.pop(worker_id, None):
            self._drop_slot(feed.slot)

    def next_event(self, worker_id: str) -> int:
        """Return the number of the event to go on with; 0: a snapshot is wanted."""
        feed = self._feeds.get(worker_id)
        return 0 if feed is None or feed.in_snapshot else feed.next_event

    def num_pages(self, worker_id: str) -> int:
        """Count the pages that a worker is known to hold, on each tier anew."""
        return sum(self._feeds[worker_id].counts[:EXPECTED])

    def counts(self, worker_id: str) -> list[int]:
        """Count a worker's pages: on the device, host and disk, and expected ones."""
        return list(self._feeds[worker_id].counts)

    def apply(self, worker_id: str, events: PageEvents) -> bool:
        """Learn from the next events of a worker.

        Returns:
          False if events before these are missing; then nothing has changed, and the worker must be
          watched anew.  Events that are known already are skipped.
        """
        feed = self._feeds[worker_id]
        known = 0
        if events.snapshot:
            if not (feed.in_snapshot and feed.next_event == events.first_event):
                self.open(worker_id)
                feed = self._feeds[worker_id]
            feed.next_event, feed.in_snapshot = events.first_event, True
        elif feed.in_snapshot or not 0 < events.first_event <= feed.next_event:
            return False
        else:
            known = feed.next_event - events.first_event
        for kind, tier, key in itertools.islice(events.events, known, None):
            if kind == EventKind.CLEARED:
                self._clear(feed, tier)
            else:
                self._set(feed, short(key), tier, held=kind == EventKind.INSERTED)
        if events.snapshot:
            feed.in_snapshot = events.more
            feed.next_event += not events.more
        else:
            feed.next_event = max(feed.next_event, events.first_event + len(events.events))
        self._tidy()
        return True

    def match(self, keys: Sequence[int]) -> dict[str, Held]:
        """Find the longest prefix of a chain of pages that each worker holds.

        Args:
          keys: short keys of the pages, in order.

        Returns:
          Workers that hold at least the first page.
        """
        found: dict[str, Held] = {}
        slower: dict[int, list[int]] = {}  # pages of a slot that are not on the device
        alive, length = self._live, 0
        for mask, run in itertools.groupby(map(self._masks.get, keys, itertools.repeat(NOTHING))):
            holders = (mask | mask >> 1 | mask >> 2 | mask >> EXPECTED) & alive
            if length and holders != alive:
                self._report(found, alive & ~holders, length, slower)
            alive = holders
            if not alive:
                break
            number = sum(1 for _ in run)
            length += number
            for slot in _slots(alive & ~mask):
                counts = slower.setdefault(slot, [0] * SLOT_BITS)
                counts[_fastest(mask >> slot * SLOT_BITS)] += number
        self._report(found, alive if length else 0, length, slower)
        return found

    def expect(self, worker_id: str, keys: Sequence[int], num_held: int) -> None:
        """Note that a worker is about to compute the pages that follow those it holds."""
        feed = self._feeds[worker_id]
        if len(self._masks) > self.max_pages * 7 // 8:
            for key in reversed(keys[:num_held]):  # so that they are not the oldest
                if mask := self._masks.pop(key, NOTHING):
                    self._masks[key] = mask
        for key in itertools.islice(keys, num_held, None):
            self._set(feed, key, EXPECTED, held=True)
        self._tidy()

    def withdraw(self, worker_id: str, keys: Sequence[int]) -> None:
        """Expect pages no longer: they are there, or never will be."""
        feed = self._feeds.get(worker_id)
        if feed is None:
            return
        for key in keys:
            if key in self._masks:
                self._set(feed, key, EXPECTED, held=False)

    def _report(
        self, found: dict[str, Held], slots: int, length: int, slower: dict[int, list[int]]
    ) -> None:
        for slot in _slots(slots):
            counts = slower.get(slot)
            held = Held(length, *counts[1:]) if counts else Held(length)
            found[self._worker_of[slot]] = held

    def _set(self, feed: _Feed, key: int, tier: int, *, held: bool) -> None:
        bit = 1 << feed.slot * SLOT_BITS + tier
        old = self._masks.get(key, NOTHING)
        new = (old | bit if held else old & ~bit) & ~self._dead
        if bool(old & bit) != held:
            feed.counts[tier] += 1 if held else -1
        if new:
            self._masks[key] = self._shared.setdefault(new, new)
        elif old:
            del self._masks[key]

    def _clear(self, feed: _Feed, tier: Tier) -> None:
        bit = 1 << feed.slot * SLOT_BITS + tier
        self._rewrite(list(self._masks), ~bit)
        feed.counts[tier] = 0

    def _rewrite(self, keys: Sequence[int], kept: int) -> None:
        for key in keys:
            if old := self._masks.get(key, NOTHING):
                if new := old & kept:
                    self._masks[key] = self._shared.setdefault(new, new)
                else:
                    del self._masks[key]

    def _take_slot(self, worker_id: str) -> int:
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot, self._num_slots = self._num_slots, self._num_slots + 1
        self._worker_of[slot] = worker_id
        self._live |= 1 << slot * SLOT_BITS
        return slot

    def _drop_slot(self, slot: int) -> None:
        del self._worker_of[slot]
        self._live &= ~(1 << slot * SLOT_BITS)
        self._dead |= SLOT_MASK << slot * SLOT_BITS
        self._dead_slots.append(slot)

    def _tidy(self) -> None:
        """Keep the bound, and go on sweeping."""
        if len(self._shared) > MAX_SHARED_MASKS:
            self._shared.clear()
        if len(self._masks) > self.max_pages:
            self._trim()
        if self._sweep is None and self._dead_slots:
            self._sweep = iter(list(self._masks))
            self._swept = self._dead, self._dead_slots
            self._dead_slots = []
        if self._sweep is not None:
            keys = list(itertools.islice(self._sweep, SWEEP_PAGES))
            self._rewrite(keys, ~self._swept[0])
            if len(keys) < SWEEP_PAGES:
                bits, slots = self._swept
                self._dead &= ~bits
                self._free_slots += slots
                self._sweep, self._swept = None, (0, [])

    def _trim(self) -> None:
        number = len(self._masks) - self.max_pages + self.max_pages // TRIM_SHARE
        oldest = list(itertools.islice(self._masks, number))
        for mask, times in collections.Counter(map(self._masks.pop, oldest)).items():
            for feed in self._feeds.values():
                held = mask >> feed.slot * SLOT_BITS & SLOT_MASK
                for tier in range(SLOT_BITS) if held else ():
                    feed.counts[tier] -= times * (held >> tier & 1)
        self.num_forgotten += number


def short(key: bytes) -> int:
    """Shorten a page identity to what the index keeps of it."""
    return int.from_bytes(key[:8], "little") & KEY_MASK


def shortened(keys: Sequence[bytes]) -> list[int]:
    """Shorten all page identities of a prompt; each has 16 bytes."""
    words = struct.unpack(f"<{2 * len(keys)}Q", b"".join(keys))
    return [word & KEY_MASK for word in words[::2]]


def _slots(bits: int) -> Iterator[int]:
    """List the slots whose lowest bit is set."""
    while bits:
        low = bits & -bits
        yield (low.bit_length() - 1) // SLOT_BITS
        bits ^= low


def _fastest(bits: int) -> int:
    return next(tier for tier in range(SLOT_BITS) if bits >> tier & 1)
