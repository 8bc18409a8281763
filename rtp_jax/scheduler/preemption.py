"""Whose pages go when pages run out?

Those of the running sequence that comes last: the youngest of the lowest priority.  It waits in
its old place, keeps its tokens, and prefills them again; usually the prefix index still has most
of its pages.  Nobody takes pages from a sequence that comes before it, and a sequence that finds
no victim behind it keeps its own pages and sits out the step.  So the first one always advances
(all pages suffice for any one sequence, or admission would have refused it), it ends, and then the
next one is first: nothing waits for ever, and no two sequences take pages from each other in turn.
"""

from rtp_jax.scheduler.roster import Roster
from rtp_jax.scheduler.tracked import Tracked


def preempt_for(tracked: Tracked, roster: Roster, *, alone: bool) -> bool:
    """Take the pages of the last running sequence, or say that nobody comes after this one.

    A sequence that must run alone, because a step with it failed, may take from all others.
    """
    last = next((other for other in roster.running.from_last() if other is not tracked), None)
    if last is None or (last.key < tracked.key and not alone):
        return False
    roster.suspend(last)
    last.sequence.num_preemptions += 1
    roster.counters.preemptions += 1
    return True
