"""Which pages does each sequence hold, and which of them can others find?

Joins the page pool and the prefix index to sequences.  A page is handed to the index when it is
full, its token ids are known to the host, and the step that computes it has been planned.  Its KV
may not be written yet; but programs run on the device in the order in which they are enqueued, so
every later step that reads the page finds it complete.

Two sequences with the same prompt that arrive together would compute it twice.  So while one fills
pages of its prompt, later ones that need the same pages wait for them (`page_to_wait_for`); the
other completions of a request (n > 1) share their prompt by this rule too.

Below the device there may be other tiers (`cache/hierarchy.py`).  A page that the index loses to
make room is read for them before it is overwritten; pages that a parked sequence has loaded are
written before its first step, and are in the index from then on like those that it computed.
"""

import functools

from rtp_jax.cache.fetch import Loaded
from rtp_jax.cache.hierarchy import Hierarchy
from rtp_jax.cache.page_events import PageEvents
from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.cache.page_pool import PagePool
from rtp_jax.cache.prefix_index import IndexedPage, PrefixIndex
from rtp_jax.page_record import PageRead
from rtp_jax.request import Sequence
from rtp_jax.scheduler.counters import Counters
from rtp_jax.scheduler.moves import Moves
from rtp_jax.scheduler.tracked import Tracked, known_tokens


class PageLedger:
    """The pages of all sequences."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        identity: PageIdentity | None,
        counters: Counters,
        events: PageEvents,
        hierarchy: Hierarchy | None = None,
    ):
        self.page_size = page_size
        self.moves = Moves()
        self._hierarchy = hierarchy
        self.index = PrefixIndex(events)
        self.pool = PagePool(num_pages, on_evict=self._on_evict)
        self._identity = identity  # None: no prefix caching
        self._counters = counters
        self._filling: dict[bytes, Tracked] = {}  # pages of prompts that are being prefilled

    def match(self, tracked: Tracked) -> list[int]:
        """Find the pages that hold the beginning of a waiting sequence's tokens.

        The last token is never matched: the logits after it are what the sequence waits for.
        """
        if self._identity is None:
            return []
        chain = self._chain(tracked)  # made even if it is not matched: others may match its pages
        if not self.may_match(tracked):
            return []
        return self.index.match(chain, self.most_matched(tracked))

    def page_to_wait_for(self, tracked: Tracked, matched: list[int]) -> bytes | None:
        """Return the last page behind a match that sequences before this one are about to fill."""
        if not self._filling or tracked.chain is None or not self.may_match(tracked):
            return None
        last = None
        for key in tracked.chain.keys[len(matched) : self.most_matched(tracked)]:
            by = self._filling.get(key)
            if by is None or by is tracked or by.key > tracked.key:
                break
            if tracked.prefill_only and by.fetch is not None:
                break  # it may wait for another worker, and that one for these very pages
            last = key
        return last

    def most_matched(self, tracked: Tracked) -> int:
        """Count the pages that a sequence may find: never that of its last token.

        One that only prefills computes at least one page, as a step is what ends it.
        """
        return (known_tokens(tracked.sequence) - 1) // self.page_size - tracked.prefill_only

    def may_match(self, tracked: Tracked) -> bool:
        """Say whether a sequence may use pages that the device has."""
        return self.may_load(tracked) and tracked.group.request.reuse.device

    def may_load(self, tracked: Tracked) -> bool:
        """Prompt logprobs need the hidden state of every prompt token, so all of it is computed."""
        request = tracked.group.request
        wanted = request.reuse_prefix and request.params.prompt_logprobs is None
        return wanted and self._identity is not None

    def is_filling(self, key: bytes | None) -> bool:
        """Tell whether somebody is about to fill a page."""
        return key is not None and key in self._filling

    def num_needed(self, sequence: Sequence, matched: list[int]) -> int:
        """Count the available pages that a waiting sequence takes: for all tokens it has."""
        total = -(-known_tokens(sequence) // self.page_size)
        return total - len(matched) + self.pool.num_unused(matched)

    def open(self, tracked: Tracked, matched: list[int], loaded: Loaded) -> None:
        """Give a sequence the pages for all its tokens, beginning with those that match.

        What was loaded goes to the pages behind them before the next step.
        """
        sequence = tracked.sequence
        self.pool.share(matched)
        total = -(-known_tokens(sequence) // self.page_size)
        sequence.pages = matched + self.pool.allocate(total - len(matched))
        num_loaded = loaded.behind(len(matched))
        sequence.num_computed = (len(matched) + num_loaded) * self.page_size
        if num_loaded:
            self._write(sequence.pages, len(matched), loaded)
        self._count_hits(matched)
        tracked.num_sent_pages = 0
        tracked.num_indexed = len(matched)
        tracked.next_page_end = (len(matched) + 1) * self.page_size
        tracked.indexing = tracked.chain is not None and tracked.group.request.reuse.device
        if tracked.indexing:
            self.start_filling(tracked, len(matched), sequence.num_prompt // self.page_size)

    def start_filling(self, tracked: Tracked, first: int, stop: int) -> None:
        """Let later sequences with the same pages wait for this one."""
        assert tracked.chain is not None
        for key in tracked.chain.keys[first:stop]:
            self._filling.setdefault(key, tracked)

    def stop_filling(self, tracked: Tracked) -> None:
        """Let nobody wait for a sequence any more."""
        if self._filling and tracked.chain is not None:
            for key in tracked.chain.keys:
                if self._filling.get(key) is tracked:
                    del self._filling[key]

    def grow(self, sequence: Sequence) -> None:
        """Give a running sequence one more page."""
        sequence.pages += self.pool.allocate(1)

    def close(self, tracked: Tracked) -> None:
        """Take all pages of a sequence back; the index remembers the full ones."""
        sequence = tracked.sequence
        self.remember(tracked)
        self._stop_indexing(tracked)
        self.pool.free(sequence.pages)
        sequence.pages = []  # a new list: plans in flight hold the old one
        sequence.num_computed = 0

    def remember(self, tracked: Tracked, *, computed: bool = True) -> None:
        """Hand the pages that have become full since the last time to the index.

        `computed` is False while the step that computes them is not enqueued yet.
        """
        if tracked.prefill_only:
            self._publish(tracked, computed)
        if not tracked.indexing:
            return
        sequence, request = tracked.sequence, tracked.group.request
        full = min(sequence.num_computed, known_tokens(sequence)) // self.page_size
        if full <= tracked.num_indexed:
            return
        chain = self._chain(tracked)
        for at in range(tracked.num_indexed, full):
            if not self.index.insert(chain, at, sequence.pages, request.reuse):
                self._stop_indexing(tracked)
                return
            self.pool.remember(sequence.pages[at])
            self._write_through(self.index.entry(sequence.pages[at]), computed)
            tracked.num_indexed = at + 1
            tracked.next_page_end += self.page_size
            if self._filling.get(chain.keys[at]) is tracked:
                del self._filling[chain.keys[at]]

    def distrust(self, tracked: Tracked) -> None:
        """Forget all pages of a sequence: their numbers are broken, and would break others."""
        self._stop_indexing(tracked)
        if tracked.chain is not None:
            self.pool.forget(self.index.forget(tracked.chain))
            if self._hierarchy is not None:
                self._hierarchy.forget(tracked.chain.keys)

    def forget_all(self) -> None:
        """Empty the prefix index; sequences keep the pages they hold."""
        self.pool.forget(self.index.clear())

    def _write(self, pages: list[int], num_matched: int, loaded: Loaded) -> None:
        """Put what was loaded into pages, but for what the device has in the meantime."""
        at = loaded.first
        for batch in loaded.batches:
            places = range(at, at + len(batch.tiers))
            if places.stop > num_matched:
                goes = [pages[place] if place >= num_matched else 0 for place in places]
                self.moves.write(batch.staged, goes)
            at = places.stop

    def _count_hits(self, matched: list[int]) -> None:
        if self._hierarchy is None or self._hierarchy.options.write_hits is None:
            return
        for page in matched:
            entry = self.index.entry(page)
            entry.num_hits += 1
            self._write_through(entry, True)

    def _write_through(self, entry: IndexedPage, computed: bool) -> None:
        """Copy a page that was hit often enough to the tiers below; it stays where it is."""
        hierarchy = self._hierarchy
        if hierarchy is None or entry.num_hits != hierarchy.options.write_hits:
            return
        if sink := hierarchy.reader(entry.key, entry.reuse, through=True):
            read = PageRead(entry.page, entry.key, entry.parent, entry.packed, sink)
            self.moves.read(read, computed=computed)

    def _publish(self, tracked: Tracked, computed: bool) -> None:
        """Hand full pages to whoever asked for nothing but them."""
        sequence, publication = tracked.sequence, tracked.group.request.publication
        full = min(sequence.num_computed, tracked.prefill_end) // self.page_size
        if publication is None or self._identity is None or full <= tracked.num_published:
            return
        chain = self._chain(tracked)
        for at in range(tracked.num_published, full):
            parent = chain.keys[at - 1] if at else chain.root
            sink = functools.partial(publication.sink, at)
            page = sequence.pages[at]
            read = PageRead(page, chain.keys[at], parent, chain.packed[at], sink)
            self.moves.read(read, computed=computed)
        tracked.num_published = full

    def _chain(self, tracked: Tracked) -> PageChain:
        """Return a sequence's chain, extended over all tokens that the host knows."""
        assert self._identity is not None
        sequence, group, size = tracked.sequence, tracked.group, self.page_size
        if tracked.chain is None:
            if group.prompt_chain is None:
                root = self._identity.root(cache_salt=sequence.request.cache_salt)
                group.prompt_chain = PageChain(self._identity, root)
                group.prompt_chain.extend(sequence.known_ids(0, sequence.num_prompt // size * size))
            tracked.chain = group.prompt_chain.copy()
        chain = tracked.chain
        if len(chain) < (pages := known_tokens(sequence) // size):
            chain.extend(sequence.known_ids(len(chain) * size, pages * size))
        return chain

    def _stop_indexing(self, tracked: Tracked) -> None:
        tracked.indexing = False
        self.stop_filling(tracked)

    def _on_evict(self, page: int) -> None:
        """Let go of a page; the tiers below read it before it is overwritten."""
        entry = self.index.evict(page)
        self._counters.evictions += 1
        if self._hierarchy is None:
            return
        if sink := self._hierarchy.reader(entry.key, entry.reuse):
            self.moves.read(PageRead(page, entry.key, entry.parent, entry.packed, sink))
