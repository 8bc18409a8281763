"""Which waiting sequences have pages on their way?

A sequence whose turn has come, and whose prompt continues on a tier below the device, is *parked*:
it stays in its place in the queue, holds neither slot nor pages, and is passed over until its pages
have arrived, or cannot, or take too long.  Then it starts with what did arrive.  Its keys count as
being filled meanwhile, so later sequences with the same prompt wait for it instead of loading the
same pages.

Should the device lose pages of the beginning while a sequence is parked, what arrives has a gap
before it and is of no use; the sequence may fetch again, `MAX_FETCHES` times in all.
"""

from rtp_jax.cache.fetch import Loaded
from rtp_jax.cache.hierarchy import Hierarchy
from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.scheduler.page_ledger import PageLedger
from rtp_jax.scheduler.tracked import Tracked, known_tokens

MAX_FETCHES = 3  # of one admission
NOTHING = Loaded(0, ())


class Parking:
    """The parked sequences of an engine without tiers or with some."""

    def __init__(self, ledger: PageLedger, hierarchy: Hierarchy | None):
        self._ledger, self._hierarchy = ledger, hierarchy
        self._parked: set[Tracked] = set()
        self._is_full = False  # a sequence of this turn waits for staging

    def __len__(self) -> int:
        return len(self._parked)

    def begin_turn(self) -> None:
        """Look at all sequences anew, the first one first."""
        self._is_full = False

    def keeps(self, tracked: Tracked, matched: list[int], now_s: float) -> bool:
        """Say whether a sequence goes on waiting for pages; begins to fetch them if it should."""
        if self._hierarchy is None or not self._ledger.may_load(tracked):
            return False
        fetch = tracked.fetch
        if fetch is not None:
            if not fetch.done and now_s < fetch.give_up_s:
                return True
            if fetch.wanted.first <= len(matched):
                self._parked.discard(tracked)
                return False  # it starts with what has arrived
            self.leave(tracked)
        if tracked.num_fetches >= MAX_FETCHES:
            return False
        return self._begin(tracked, matched, now_s)

    def loaded(self, tracked: Tracked) -> Loaded:
        """Return what has arrived for a sequence that is about to start."""
        return NOTHING if tracked.fetch is None else tracked.fetch.loaded()

    def leave(self, tracked: Tracked) -> None:
        """A sequence starts, ends or fetches anew: nothing of its fetch is needed any more."""
        self._parked.discard(tracked)
        if tracked.fetch is None:
            return
        assert self._hierarchy is not None
        self._ledger.stop_filling(tracked)
        self._hierarchy.release(tracked.fetch)
        tracked.fetch = None

    def _begin(self, tracked: Tracked, matched: list[int], now_s: float) -> bool:
        assert self._hierarchy is not None
        wanted = self._wanted(tracked, len(matched))
        uncached = known_tokens(tracked.sequence) - len(matched) * self._ledger.page_size
        count = self._hierarchy.worth_loading(wanted, uncached) if len(wanted) else 0
        if count == 0:
            tracked.num_fetches = MAX_FETCHES  # for this admission, it is settled
            return False
        if self._is_full or not self._hierarchy.has_room(count):
            self._is_full = True  # for all behind it too, or a long prompt would wait for ever
            return True
        tracked.fetch = self._hierarchy.fetch(wanted.upto(count), now_s)
        tracked.num_fetches += 1
        self._parked.add(tracked)
        if tracked.group.request.reuse.device:
            stop = wanted.first + len(tracked.fetch.wanted)
            self._ledger.start_filling(tracked, wanted.first, stop)
        return True

    def _wanted(self, tracked: Tracked, first: int) -> Wanted:
        """List the full pages behind those that the device has, but for the last token."""
        chain = tracked.chain
        assert chain is not None, "a sequence is matched before it is parked"
        stop = self._ledger.most_matched(tracked)
        parent = chain.keys[first - 1] if first else chain.root
        keys, packed = tuple(chain.keys[first:stop]), tuple(chain.packed[first:stop])
        return Wanted(tracked.group.request, first, parent, keys, packed)
