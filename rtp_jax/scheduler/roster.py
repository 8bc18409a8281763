"""Which phase is each sequence in, and what does changing it take and give back?

    add -> waiting --start--> running --end--> gone
              ^----suspend-------'

The one owner of the lists, the slots and, through the ledger, the pages; who moves is decided by
its callers.
"""

from rtp_jax.cache.hierarchy import Hierarchy
from rtp_jax.request import Phase, Sequence
from rtp_jax.scheduler.counters import Counters, Pace
from rtp_jax.scheduler.ordered import Ordered
from rtp_jax.scheduler.page_ledger import PageLedger
from rtp_jax.scheduler.parking import Parking
from rtp_jax.scheduler.tracked import Group, Tracked, prefill_end


class Roster:
    """All live sequences of an engine."""

    def __init__(
        self,
        *,
        num_slots: int,
        ledger: PageLedger,
        counters: Counters,
        hierarchy: Hierarchy | None = None,
    ):
        self.ledger = ledger
        self.parking = Parking(ledger, hierarchy)
        self.counters = counters
        self.pace = Pace()
        self.groups: dict[str, Group] = {}  # live requests by id
        self.waiting, self.running = Ordered(), Ordered()
        self.free_slots = list(range(num_slots - 1, -1, -1))  # the next one is last
        self.num_new = 0  # requests of which no sequence has been admitted

    def add(self, group: Group) -> None:
        """Let all sequences of a request wait."""
        self.groups[group.request.id] = group
        self.num_new += 1
        for tracked in group.members:
            if tracked.sequence.phase is Phase.WAITING:  # not what had ended before
                self.waiting.add(tracked)

    def find(self, sequence: Sequence) -> Tracked | None:
        """Return the entry of a sequence that lives."""
        group = self.groups.get(sequence.request.id)
        tracked = group.members[sequence.index] if group else None
        live = tracked is not None and tracked.sequence is sequence
        return tracked if live and sequence.phase is not Phase.FINISHED else None

    def start(self, tracked: Tracked, matched: list[int], now_s: float) -> None:
        """Give a waiting sequence a slot and pages: first those matched, then those loaded."""
        sequence, size = tracked.sequence, self.ledger.page_size
        self.waiting.remove(tracked)
        self.running.add(tracked)
        sequence.phase, sequence.slot = Phase.RUNNING, self.free_slots.pop()
        tracked.prefill_end = prefill_end(tracked, size)
        loaded = self.parking.loaded(tracked)
        self.parking.leave(tracked)
        tracked.num_fetches = 0
        self.ledger.open(tracked, matched, loaded)
        if sequence.admitted_s is not None:
            return
        sequence.admitted_s = now_s
        sequence.num_cached = min(sequence.num_computed, sequence.num_prompt)
        sequence.cached_tokens = loaded.tokens(len(matched), size)
        if self.ledger.may_load(tracked):
            for tier, num_tokens in sequence.cached_tokens.items():
                self.counters.tier_hit_tokens[tier] += num_tokens
            self.counters.query_tokens += sequence.num_prompt
            self.counters.hit_tokens += sequence.num_cached
        if not tracked.group.started:
            tracked.group.started = True
            self.num_new -= 1
            self.pace.tick(now_s)

    def suspend(self, tracked: Tracked) -> None:
        """Send a running sequence back to wait; it keeps its tokens and nothing else.

        Tokens of it that are in flight are still right, and welcome when they are committed.
        """
        self._leave_slot(tracked)
        tracked.sequence.phase = Phase.WAITING
        self.waiting.add(tracked)

    def end(self, tracked: Tracked) -> None:
        """Take everything back from a sequence, for good."""
        if tracked.sequence.phase is Phase.RUNNING:
            self._leave_slot(tracked)
        else:
            self.waiting.remove(tracked)
            self.parking.leave(tracked)
        tracked.sequence.phase = Phase.FINISHED
        group = tracked.group
        group.num_live -= 1
        if group.num_live == 0:
            del self.groups[group.request.id]
            self.num_new -= not group.started

    def _leave_slot(self, tracked: Tracked) -> None:
        self.running.remove(tracked)
        self.ledger.close(tracked)
        self.free_slots.append(tracked.sequence.slot)
        tracked.sequence.slot = -1
