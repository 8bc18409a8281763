"""Which waiting sequences start in this step?

The first in order, as long as a slot, tokens and pages are left.  The first that does not fit
stops all behind it, so that a long prompt is never overtaken until nothing fits it any more.  Three
kinds are passed over, because their time comes with commits or arrivals and not with free pages:

  - a preempted sequence of which a step is still in flight: its tokens are not all known yet;
  - one whose prompt another one is just computing (`PageLedger.page_to_wait_for`), or loading;
  - one whose pages are on their way from a slower tier (`parking.py`).

A sequence takes the pages for all tokens that it has at once.  One page is left for each sequence
that runs, since each needs one soon; without that, starting a sequence would soon cost another its
pages.  Nobody who runs is preempted for a newcomer.
"""

from rtp_jax.request import Sequence, StepRow
from rtp_jax.scheduler.preemption import preempt_for
from rtp_jax.scheduler.prefill import chunk_size, prefill_row
from rtp_jax.scheduler.room import Room
from rtp_jax.scheduler.roster import Roster
from rtp_jax.scheduler.tracked import Tracked, prefill_end

MAX_LOOKED_AT = 256  # waiting sequences that one step considers


class Newcomers:
    """Starts waiting sequences; remembers which one did not fit, so that it costs nothing."""

    def __init__(self, roster: Roster, longest_chunk: int):
        self._roster = roster
        self._longest = longest_chunk
        self._blocked: Tracked | None = None
        self._blocked_margin = 0  # pages that were not enough for it

    def rows(
        self, room: Room, now_s: float, only: Sequence | None
    ) -> list[tuple[Tracked, StepRow]]:
        """Start sequences and plan their first chunks."""
        chosen: list[tuple[Tracked, StepRow]] = []
        ledger = self._roster.ledger
        self._roster.parking.begin_turn()
        for tracked in self._candidates(only):
            if room.tokens == 0:
                break
            if tracked.steps_in_flight or ledger.is_filling(tracked.waits_for):
                continue
            if only is None and self._is_blocked(tracked):
                break
            matched = ledger.match(tracked)
            tracked.waits_for = ledger.page_to_wait_for(tracked, matched)
            if tracked.waits_for is not None:
                continue
            if only is None and self._roster.parking.keeps(tracked, matched, now_s):
                continue
            count = self._first_chunk(tracked, matched, room)
            if count == 0 or not self._fits(tracked, matched, alone=only is not None):
                break
            self._roster.start(tracked, matched, now_s)
            chosen.append((tracked, prefill_row(tracked, count, room)))
        return chosen

    def _candidates(self, only: Sequence | None) -> list[Tracked]:
        waiting = self._roster.waiting
        if only is None:
            return waiting.first(MAX_LOOKED_AT) if self._roster.free_slots else []
        tracked = self._roster.find(only)
        return [tracked] if tracked is not None and tracked in waiting else []

    def _first_chunk(self, tracked: Tracked, matched: list[int], room: Room) -> int:
        size, loaded = self._roster.ledger.page_size, self._roster.parking.loaded(tracked)
        tracked.prefill_end = prefill_end(tracked, size)
        start = (len(matched) + loaded.behind(len(matched))) * size
        return chunk_size(tracked, start, room, self._longest)

    def _fits(self, tracked: Tracked, matched: list[int], *, alone: bool) -> bool:
        roster = self._roster
        needed = roster.ledger.num_needed(tracked.sequence, matched)
        while alone and (needed > roster.ledger.pool.num_available or not roster.free_slots):
            preempted = preempt_for(tracked, roster, alone=True)
            assert preempted, f"{needed} pages do not fit although nothing else runs"
        if not roster.free_slots:
            return False
        if needed <= self._margin() or alone:
            return True
        self._blocked, self._blocked_margin = tracked, self._margin()
        return False

    def _is_blocked(self, tracked: Tracked) -> bool:
        """Say whether nothing has changed for a sequence that did not fit."""
        return tracked is self._blocked and self._margin() <= self._blocked_margin

    def _margin(self) -> int:
        """Count the pages that a newcomer may take."""
        return self._roster.ledger.pool.num_available - len(self._roster.running)
