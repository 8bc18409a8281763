"""What happened to an engine's pages, in order, for whoever follows them from elsewhere.

    events   ... 1042 inserted  1043 inserted  1044 evicted ...
                                               ^ a follower asks for what came from here on

Events are numbered.  Only the latest are kept, so memory is bounded; a follower that asks for older
ones starts over with a snapshot, which counts as one event.  Nothing is kept before the first
follower comes: an engine without a router pays for a count.

Whoever moves pages adds events, from any thread; it costs well below a microsecond of that thread.
"""

import enum
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

MAX_EVENTS = 1 << 16
FIRST_EVENT = 2  # 0 asks for a snapshot, and 1 is the earliest that a snapshot can be


class Tier(enum.IntEnum):
    """Where a page is; numbers of `wire/router.proto`."""

    DEVICE = 1
    HOST = 2
    DISK = 3


class Kind(enum.IntEnum):
    """What happened; numbers of `wire/router.proto`."""

    INSERTED = 1
    EVICTED = 2
    CLEARED = 3  # every page of the tier; no key


class Event(NamedTuple):
    """One page came to a tier, or left it."""

    kind: Kind
    tier: Tier
    key: bytes


class Snapshot(NamedTuple):
    """All pages at some time; events from `next_event` on make it true again."""

    next_event: int
    events: list[Event]  # insertions


class PageEvents:
    """The latest events of one engine, and what its tiers hold."""

    def __init__(self, max_events: int = MAX_EVENTS):
        self._max_events = max_events
        self._lock = threading.Lock()
        self._followed = False
        self._kept: list[tuple[Kind, Tier, bytes]] = []  # plain: making them is cheaper
        self._next = FIRST_EVENT
        self._holdings: dict[Tier, Callable[[], Iterable[bytes]]] = {}

    def holds(self, tier: Tier, keys: Callable[[], Iterable[bytes]]) -> None:
        """Say how to list the pages of a tier; may be called from any thread."""
        self._holdings[tier] = keys

    def inserted(self, tier: Tier, key: bytes) -> None:
        """A page can be found in a tier from now on."""
        self._add(Kind.INSERTED, tier, key)

    def evicted(self, tier: Tier, key: bytes) -> None:
        """A page cannot be found in a tier any more."""
        self._add(Kind.EVICTED, tier, key)

    def cleared(self, tier: Tier) -> None:
        """No page can be found in a tier any more."""
        self._add(Kind.CLEARED, tier, b"")

    @property
    def next_event(self) -> int:
        """Number of the event that comes next."""
        return self._next

    def since(self, number: int) -> list[Event] | None:
        """Return the events from a number on; None: they are not kept, take a snapshot."""
        with self._lock:
            first = self._next - len(self._kept)
            if not self._followed or not first <= number <= self._next:
                return None
            kept = self._kept[number - first :]
        return [Event(*each) for each in kept]

    def snapshot(self) -> Snapshot:
        """List all pages.

        Events that happen meanwhile may show in it already; they follow again, and telling them
        twice is harmless: the last event of a page decides.
        """
        with self._lock:
            self._followed = True
            next_event = self._next
        events = [
            Event(Kind.INSERTED, tier, key)
            for tier, keys in self._holdings.items()
            for key in keys()
        ]
        return Snapshot(next_event, events)

    def of(self, tier: Tier) -> "TierEvents":
        """Return the events of one tier."""
        return TierEvents(self, tier)

    def _add(self, kind: Kind, tier: Tier, key: bytes) -> None:
        with self._lock:
            self._next += 1
            if not self._followed:
                return
            self._kept.append((kind, tier, key))
            if len(self._kept) > 2 * self._max_events:
                del self._kept[: self._max_events]


class TierEvents:
    """What one tier tells."""

    def __init__(self, events: PageEvents, tier: Tier):
        self._events, self._tier = events, tier

    def holds(self, keys: Callable[[], Iterable[bytes]]) -> None:
        """Say how to list the pages; may be called from any thread."""
        self._events.holds(self._tier, keys)

    def inserted(self, key: bytes) -> None:
        """A page can be found from now on."""
        self._events.inserted(self._tier, key)

    def evicted(self, key: bytes) -> None:
        """A page cannot be found any more."""
        self._events.evicted(self._tier, key)

    def cleared(self) -> None:
        """No page can be found any more."""
        self._events.cleared(self._tier)
