"""Which record leaves a full tier?  The one that was unused longest, of those without children.

A page is of use only behind its parent, so children leave before their parents.  They may arrive
before them, too: the device gives up leaves first.  Not safe for several threads.
"""

import heapq
import itertools
from dataclasses import dataclass

from rtp_jax.cache.page_events import TierEvents


@dataclass(slots=True)
class Entry:
    """A record in a tier, without its bytes."""

    parent: bytes
    size: int  # bytes
    used: int  # when, in ticks


class LeafLru:
    """The records of one tier: their sizes and the order in which they go."""

    def __init__(self, told: TierEvents | None = None):
        """Start empty; `told` hears of what comes and goes, for routers."""
        self.total_bytes = 0
        self._told = told
        self._entries: dict[bytes, Entry] = {}
        self._num_children: dict[bytes, int] = {}  # by parent, which need not be here
        self._leaves: list[tuple[int, bytes]] = []  # a heap of ticks and keys; some are outdated
        self._ticks = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def reserve(self, count: int) -> range:
        """Return ticks for records that will come backwards: the one that was used last first."""
        first = next(self._ticks)
        self._ticks = itertools.count(first + count)
        return range(first + count - 1, first - 1, -1)

    def add(self, key: bytes, parent: bytes, size: int, used: int | None = None) -> None:
        """Take a record in as the newest, or as used at a tick that was reserved for it."""
        assert key not in self._entries, f"{key.hex()} is here already"
        self._entries[key] = entry = Entry(
            parent, size, next(self._ticks) if used is None else used
        )
        self._num_children[parent] = self._num_children.get(parent, 0) + 1
        self.total_bytes += size
        self._offer(key, entry)
        if self._told is not None:
            self._told.inserted(key)

    def touch(self, keys: list[bytes]) -> None:
        """Note that records of a sequence, in its order, are used: its last one is the oldest."""
        for key in reversed(keys):
            if (entry := self._entries.get(key)) is not None:
                entry.used = next(self._ticks)
                self._offer(key, entry)

    def date(self, key: bytes, used: int) -> None:
        """Note that a record, if it is here, was used at a tick that was reserved for it."""
        if (entry := self._entries.get(key)) is not None:
            entry.used = used
            self._offer(key, entry)

    def remove(self, key: bytes) -> bool:
        """Take a record out; False: it is not here."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.total_bytes -= entry.size
        if self._told is not None:
            self._told.evicted(key)
        left = self._num_children[entry.parent] - 1
        if left:
            self._num_children[entry.parent] = left
        else:
            del self._num_children[entry.parent]
            if (parent := self._entries.get(entry.parent)) is not None:
                self._offer(entry.parent, parent)
        return True

    def oldest(self, before: int | None = None) -> bytes | None:
        """Find the record that goes next; `before`: only one that was used before that tick."""
        while self._leaves:
            used, key = self._leaves[0]
            entry = self._entries.get(key)
            if entry is not None and entry.used == used and key not in self._num_children:
                return key if before is None or used < before else None
            heapq.heappop(self._leaves)
        return None

    def newest(self) -> list[bytes]:
        """List all records, the ones used last first, and so parents before their children."""
        entries = self._entries
        return sorted(entries, key=lambda key: entries[key].used, reverse=True)

    def keys(self) -> list[bytes]:
        """List all records."""
        return list(self._entries)

    def _offer(self, key: bytes, entry: Entry) -> None:
        if key in self._num_children:
            return  # it is offered again when its last child has left
        heapq.heappush(self._leaves, (entry.used, key))
        if len(self._leaves) > 4 * len(self._entries) + 64:
            self._leaves = [
                (entry.used, key)
                for key, entry in self._entries.items()
                if key not in self._num_children
            ]
            heapq.heapify(self._leaves)
