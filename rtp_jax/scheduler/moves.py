"""Which pages are to be read or written before the next step?

Collected while a step is scheduled, taken once it is (`Scheduler.take_moves`), and enqueued before
the step itself.  So a page that was evicted for this step is read before the step overwrites it,
and a page that was loaded is written before the step reads it.

A page that this step computes can be read only after it: it waits for the next turn.  If it is
evicted until then, its read still comes before whatever overwrites it.
"""

from typing import Any

from rtp_jax.page_record import PageMoves, PageRead, PageWrite


class Moves:
    """What the scheduler asks of the runner besides steps."""

    def __init__(self):
        self._reads: list[PageRead] = []
        self._reads_after: list[PageRead] = []  # of pages that the step being scheduled computes
        self._writes: list[PageWrite] = []

    def __bool__(self) -> bool:
        return bool(self._reads or self._reads_after or self._writes)

    def read(self, read: PageRead, *, computed: bool = True) -> None:
        """Ask for the bytes of a page; `computed` is False if the step being scheduled does it."""
        (self._reads if computed else self._reads_after).append(read)

    def write(self, staged: Any, pages: list[int]) -> None:
        """Put staged bytes into pages."""
        self._writes.append(PageWrite(staged, pages))

    def take(self) -> PageMoves:
        """Hand over what comes before the step that was just scheduled."""
        moves = PageMoves(self._reads, self._writes)
        self._reads, self._reads_after, self._writes = self._reads_after, [], []
        return moves

    def drop(self) -> None:
        """Give everything up: the pages hold nothing any more."""
        reads = self._reads + self._reads_after
        self._reads, self._reads_after, self._writes = [], [], []
        for read in reads:
            read.sink(None)
