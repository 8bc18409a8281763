"""How much of a prompt is computed in this step?

A chunk: as many tokens as the step has left, at most `max_prefill_chunk`, and no more than its
logit rows allow; a prompt whose pages go to another worker may end with a short one.  The chunk
that reaches the end samples, so it needs one logit row; with prompt logprobs each position reports
the token after it, so each needs one.  A preempted sequence prefills its prompt and its output
again, and reports nothing twice.

A running sequence has the pages for all its tokens since it was admitted, so prefilling takes none
and never has to stop for want of pages.
"""

from rtp_jax.request import Phase, Sequence, StepRow
from rtp_jax.scheduler.decode import next_mask
from rtp_jax.scheduler.room import Room
from rtp_jax.scheduler.roster import Roster
from rtp_jax.scheduler.tracked import Tracked


def prefill_rows(
    roster: Roster, room: Room, longest: int, only: Sequence | None
) -> list[tuple[Tracked, StepRow]]:
    """Plan the next chunk of each running sequence whose prompt is not computed yet."""
    chosen = []
    for tracked in roster.running.copied():
        sequence = tracked.sequence
        if room.tokens == 0:
            break
        if sequence.num_computed >= tracked.prefill_end or sequence.phase is not Phase.RUNNING:
            continue
        if only is not None and sequence is not only:
            continue
        if count := chunk_size(tracked, sequence.num_computed, room, longest):
            chosen.append((tracked, prefill_row(tracked, count, room)))
    return chosen


def chunk_size(tracked: Tracked, start: int, room: Room, longest: int) -> int:
    """Choose how many tokens from `start` on fit the room; 0: none."""
    count = min(tracked.prefill_end - start, longest, room.tokens)
    count = _but_the_last(tracked, start, count)
    if count <= 0 or chunk_rows(tracked, start, count) <= room.logit_rows:
        return max(count, 0)
    sequence = tracked.sequence
    reports = sequence.request.params.prompt_logprobs is not None
    if not reports or sequence.num_prompt_logprobs == sequence.num_prompt - 1:
        return count - 1  # all but the token that samples
    silent = max(sequence.num_prompt_logprobs - start, 0)  # reported before it was preempted
    return min(silent + room.logit_rows, count - 1)


def _but_the_last(tracked: Tracked, start: int, count: int) -> int:
    """Leave the last tokens to a step of their own, if somebody waits for nothing but pages."""
    publication = tracked.group.request.publication
    last = 0 if publication is None else publication.last_chunk
    ends = start + count == tracked.prefill_end
    return count - last if ends and 0 < last <= count // 2 else count


def chunk_rows(tracked: Tracked, start: int, count: int) -> int:
    """Count the logit rows of a chunk; they are its last ones."""
    sequence = tracked.sequence
    stop = start + count
    rows = int(stop == tracked.prefill_end and not tracked.prefill_only)
    if sequence.request.params.prompt_logprobs is None:
        return rows
    # Position i reports token i + 1, and num_prompt_logprobs of them are done: from token 1 on.
    first = max(start, sequence.num_prompt_logprobs)
    return rows + max(min(stop, sequence.num_prompt - 1) - first, 0)


def prefill_row(tracked: Tracked, count: int, room: Room) -> StepRow:
    """Compute the next `count` tokens of a sequence."""
    sequence = tracked.sequence
    start = sequence.num_computed
    stop = start + count
    samples = stop == tracked.prefill_end and not tracked.prefill_only
    row = StepRow(
        sequence,
        sequence.slot,
        start,
        count,
        sequence.known_ids(start, stop),
        sequence.pages,
        tracked.num_sent_pages,
        chunk_rows(tracked, start, count),
        samples,
        next_mask(tracked) if samples else None,
    )
    room.take(count, row.num_logit_rows)
    tracked.num_sent_pages = len(sequence.pages)
    tracked.steps_in_flight += 1
    sequence.num_computed = stop
    sequence.num_in_flight += samples
    return row
