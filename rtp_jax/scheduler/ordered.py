"""Who waits, who runs, and in which order?

The scheduler keeps two of these lists.  Adding and removing is a binary search; what moves behind
it is one `memmove`, cheaper than a tree for any queue that memory allows.
"""

import bisect
from collections.abc import Iterator

from rtp_jax.scheduler.tracked import Tracked, in_order


class Ordered:
    """Sequences, best key first."""

    def __init__(self):
        self._items: list[Tracked] = []

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, tracked: Tracked) -> bool:
        at = bisect.bisect_left(self._items, tracked.key, key=in_order)
        return at < len(self._items) and self._items[at] is tracked

    def copied(self) -> list[Tracked]:
        """Copy all: the caller may add and remove meanwhile."""
        return self._items.copy()

    def first(self, count: int) -> list[Tracked]:
        """Copy the first few."""
        return self._items[:count]

    def from_last(self) -> Iterator[Tracked]:
        """Go from the last to the first."""
        return reversed(self._items)

    def add(self, tracked: Tracked) -> None:
        """Put a sequence in its place."""
        bisect.insort(self._items, tracked, key=in_order)

    def remove(self, tracked: Tracked) -> None:
        """Take a sequence out."""
        at = bisect.bisect_left(self._items, tracked.key, key=in_order)
        assert self._items[at] is tracked, f"{tracked.key} is not here"
        del self._items[at]
