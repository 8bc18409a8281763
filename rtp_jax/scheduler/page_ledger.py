"""Which pages does each sequence hold, and which of them can others find?

Joins the page pool and the prefix index to sequences.  A page is handed to the index when it is
full, its token ids are known to the host, and the step that computes it has been planned.  Its KV
may not be written yet; but programs run on the device in the order in which they are enqueued, so
every later step that reads the page finds it complete.

Two sequences with the same prompt that arrive together would compute it twice.  So while one fills
pages of its prompt, later ones that need the same pages wait for them (`page_to_wait_for`); the
other completions of a request (n > 1) share their prompt by this rule too.
"""

from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.cache.page_pool import PagePool
from rtp_jax.cache.prefix_index import PrefixIndex
from rtp_jax.request import Sequence
from rtp_jax.scheduler.counters import Counters
from rtp_jax.scheduler.tracked import Tracked, known_tokens


class PageLedger:
    """The pages of all sequences."""

    def __init__(
        self, num_pages: int, page_size: int, identity: PageIdentity | None, counters: Counters
    ):
        self.page_size = page_size
        self.index = PrefixIndex()
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
        return self.index.match(chain, (known_tokens(tracked.sequence) - 1) // self.page_size)

    def page_to_wait_for(self, tracked: Tracked, matched: list[int]) -> bytes | None:
        """Return the last page behind a match that sequences before this one are about to fill."""
        if not self._filling or tracked.chain is None or not self.may_match(tracked):
            return None
        last = None
        most = (known_tokens(tracked.sequence) - 1) // self.page_size
        for key in tracked.chain.keys[len(matched) : most]:
            by = self._filling.get(key)
            if by is None or by.key > tracked.key:
                break
            last = key
        return last

    def may_match(self, tracked: Tracked) -> bool:
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

    def open(self, tracked: Tracked, matched: list[int]) -> None:
        """Give a sequence the pages for all its tokens, beginning with those that match."""
        sequence = tracked.sequence
        self.pool.share(matched)
        total = -(-known_tokens(sequence) // self.page_size)
        sequence.pages = matched + self.pool.allocate(total - len(matched))
        sequence.num_computed = len(matched) * self.page_size
        tracked.num_sent_pages = 0
        tracked.num_indexed = len(matched)
        tracked.next_page_end = (len(matched) + 1) * self.page_size
        tracked.indexing = tracked.chain is not None
        if tracked.chain is not None:
            for key in tracked.chain.keys[len(matched) : sequence.num_prompt // self.page_size]:
                self._filling.setdefault(key, tracked)

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

    def remember(self, tracked: Tracked) -> None:
        """Hand the pages that have become full since the last time to the index."""
        if not tracked.indexing:
            return
        sequence = tracked.sequence
        full = min(sequence.num_computed, known_tokens(sequence)) // self.page_size
        if full <= tracked.num_indexed:
            return
        chain = self._chain(tracked)
        for at in range(tracked.num_indexed, full):
            if not self.index.insert(chain, at, sequence.pages):
                self._stop_indexing(tracked)
                return
            self.pool.remember(sequence.pages[at])
            tracked.num_indexed = at + 1
            tracked.next_page_end += self.page_size
            if self._filling.get(chain.keys[at]) is tracked:
                del self._filling[chain.keys[at]]

    def distrust(self, tracked: Tracked) -> None:
        """Forget all pages of a sequence: their numbers are broken, and would break others."""
        self._stop_indexing(tracked)
        if tracked.chain is not None:
            self.pool.forget(self.index.forget(tracked.chain))

    def forget_all(self) -> None:
        """Empty the prefix index; sequences keep the pages they hold."""
        self.pool.forget(self.index.clear())

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
        if self._filling and tracked.chain is not None:
            prompt_pages = tracked.sequence.num_prompt // self.page_size
            for key in tracked.chain.keys[tracked.num_indexed : prompt_pages]:
                if self._filling.get(key) is tracked:
                    del self._filling[key]

    def _on_evict(self, page: int) -> None:
        self.index.evict(page)
        self._counters.evictions += 1
