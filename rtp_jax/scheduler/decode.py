"""Who gets its next token in this step?

Every running sequence that has its prompt behind it, as long as it may still grow.  What it feeds
is either known to the host or, one step ahead, a token that only the device has seen so far.
"""

import numpy as np

from rtp_jax.request import Phase, Sequence, StepRow
from rtp_jax.scheduler.preemption import preempt_for
from rtp_jax.scheduler.room import Room
from rtp_jax.scheduler.roster import Roster
from rtp_jax.scheduler.tracked import Tracked

MAX_AHEAD = 2  # tokens of one sequence that may be in flight before it is scheduled again


def decode_rows(roster: Roster, room: Room, only: Sequence | None) -> list[tuple[Tracked, StepRow]]:
    """Plan one token for each sequence that can have one and gets the page for it.

    They are visited in order and lose pages only to those before them, so none that has its row
    already is preempted.
    """
    chosen, running = [], roster.running.copied()
    # The first of all advances in every step, even if it prefills and others need all tokens.
    kept = int(bool(running) and running[0].sequence.num_computed < running[0].prefill_end)
    for tracked in running:
        sequence = tracked.sequence
        if only is not None and sequence is not only:
            continue
        if sequence.phase is not Phase.RUNNING or not _can_decode(tracked):
            continue
        if room.tokens == kept or room.logit_rows == 0:
            break
        if not _has_page(tracked, roster, alone=only is not None):
            continue
        chosen.append((tracked, _decode_row(tracked)))
        room.take(1, 1)
    return chosen


def next_mask(tracked: Tracked) -> np.ndarray | None:
    """Return the mask of the token that a row samples."""
    if tracked.masks is None:
        return None
    sequence = tracked.sequence
    num_output = len(sequence.output_ids) + sequence.num_in_flight
    return tracked.masks.next_mask(num_output, sequence.output_ids)


def _can_decode(tracked: Tracked) -> bool:
    sequence = tracked.sequence
    in_flight = sequence.num_in_flight
    if sequence.num_computed < tracked.prefill_end or tracked.prefill_only:
        return False
    if in_flight and (tracked.lockstep or in_flight >= MAX_AHEAD):
        return False
    return len(sequence.output_ids) + in_flight < tracked.max_output


def _has_page(tracked: Tracked, roster: Roster, *, alone: bool) -> bool:
    """Make sure that the next token has a place, if need be at the cost of those behind."""
    sequence, ledger = tracked.sequence, roster.ledger
    if sequence.num_computed < len(sequence.pages) * ledger.page_size:
        return True
    while ledger.pool.num_available == 0:
        if not preempt_for(tracked, roster, alone=alone):
            return False
    ledger.grow(sequence)
    return True


def _decode_row(tracked: Tracked) -> StepRow:
    """Feed the newest token and sample the next."""
    sequence = tracked.sequence
    row = StepRow(
        sequence,
        sequence.slot,
        sequence.num_computed,
        1,
        None if sequence.num_in_flight else [sequence.output_ids[-1]],
        sequence.pages,
        tracked.num_sent_pages,
        1,
        True,
        next_mask(tracked),
    )
    tracked.num_sent_pages = len(sequence.pages)
    tracked.steps_in_flight += 1
    sequence.num_computed += 1
    sequence.num_in_flight += 1
    return row
