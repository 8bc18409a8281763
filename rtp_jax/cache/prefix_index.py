"""Which pages hold the beginning of this prompt?

The one index from page identity to page.  A page is indexed only behind its parent, and only by a
sequence that holds the parent's page, so pages form trees and whoever uses a page uses all pages
before it.  Token ids are compared on a hit: equal hashes alone never make a match.

The index does not know who uses a page; when pages are evicted is decided by `page_pool.py`.
"""

from dataclasses import dataclass

from rtp_jax.cache.page_events import PageEvents, Tier
from rtp_jax.cache.page_identity import PageChain
from rtp_jax.request import EVERY_TIER, Reuse


@dataclass(slots=True, eq=False)
class IndexedPage:
    """A page that can be found."""

    key: bytes
    parent: bytes  # key of the page before, or the root
    packed: bytes  # token ids
    page: int
    reuse: Reuse = EVERY_TIER  # tiers that it may be copied to
    num_hits: int = 0


class PrefixIndex:
    """Finds pages by their identity; parents always come before their children in its tables."""

    def __init__(self, events: PageEvents | None = None):
        self._by_key: dict[bytes, IndexedPage] = {}
        self._by_page: dict[int, IndexedPage] = {}
        self._events = events or PageEvents()  # told of what can be found, for routers
        self._events.holds(Tier.DEVICE, self._keys)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def match(self, chain: PageChain, limit: int) -> list[int]:
        """Return the pages of the longest indexed beginning of a chain, at most `limit` of them.

        A caller that wants logits leaves at least its last token out of the limit.
        """
        pages: list[int] = []
        for at in range(min(limit, len(chain))):
            if (found := self._find(chain, at)) is None:
                break
            pages.append(found.page)
        return pages

    def entry(self, page: int) -> IndexedPage:
        """Return what is known of an indexed page."""
        return self._by_page[page]

    def insert(
        self, chain: PageChain, at: int, pages: list[int], reuse: Reuse = EVERY_TIER
    ) -> bool:
        """Index page `at` of a sequence; False: it cannot be, nor can any page behind it.

        Either an equal page is indexed already (two sequences computed the same at the same
        time), or the parent is not this sequence's own, so that nothing keeps it from eviction.
        """
        key, parent = chain.keys[at], chain.root
        if at > 0:
            parent = chain.keys[at - 1]
            before = self._by_key.get(parent)
            if before is None or before.page != pages[at - 1]:
                return False
        if key in self._by_key:
            return False
        page = pages[at]
        assert page not in self._by_page, f"page {page} is indexed under another identity"
        entry = IndexedPage(key, parent, chain.packed[at], page, reuse)
        self._by_key[key] = self._by_page[page] = entry
        self._events.inserted(Tier.DEVICE, key)
        return True

    def evict(self, page: int) -> IndexedPage:
        """Forget a page that is somebody else's from now on; return what it was."""
        entry = self._by_page.pop(page)
        del self._by_key[entry.key]
        self._events.evicted(Tier.DEVICE, entry.key)
        return entry

    def forget(self, chain: PageChain) -> list[int]:
        """Forget a chain and all that branches off; return the pages.  Reads the whole index."""
        lost = set(chain.keys)
        for entry in self._by_key.values():  # parents first
            if entry.parent in lost:
                lost.add(entry.key)
        forgotten = [entry.page for key, entry in self._by_key.items() if key in lost]
        for page in forgotten:
            self.evict(page)
        return forgotten

    def clear(self) -> list[int]:
        """Forget everything; return the pages that were indexed."""
        pages = list(self._by_page)
        self._by_key.clear()
        self._by_page.clear()
        self._events.cleared(Tier.DEVICE)
        return pages

    def _keys(self) -> list[bytes]:
        """List what can be found; in one piece, because it is called from other threads."""
        return list(self._by_key)

    def _find(self, chain: PageChain, at: int) -> IndexedPage | None:
        entry = self._by_key.get(chain.keys[at])
        if entry is None or entry.packed != chain.packed[at]:
            return None
        return entry if entry.parent == (chain.keys[at - 1] if at else chain.root) else None
