"""Who uses which page of the device?

    free ──allocate──> in use ──free──> free        (a page that nobody remembers)
                        │  ↑ └──free──> evictable   (a page that the prefix index remembers)
                        └share           │  │
                           ↑────share────┘  └──allocate──> in use, forgotten by the index

Evictable pages are taken back longest unused first, and only when no page is free.  A sequence
gives its pages back last page first, and whoever uses an indexed page uses all before it
(`prefix_index.py`), so a page always becomes evictable before its parent does: the oldest page is
a leaf, and leaves go first without anybody looking for them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class PagePool:
    """The pages 1..num_pages-1; page 0 is the null page and belongs to nobody."""

    def __init__(self, num_pages: int, *, on_evict: Callable[[int], None]):
        assert num_pages >= 2, f"{num_pages} pages leave none beside the null page"
        self.num_pages = num_pages
        self._on_evict = on_evict  # told of each page that is taken from the index
        self._free = list(range(num_pages - 1, 0, -1))  # the next one is last
        self._num_users = [0] * num_pages
        self._remembered = bytearray(num_pages)
        self._evictable: OrderedDict[int, None] = OrderedDict()  # longest unused first

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_evictable(self) -> int:
        """Pages that only the prefix index remembers."""
        return len(self._evictable)

    @property
    def num_available(self) -> int:
        """Pages that could be allocated now."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Pages that some sequence holds."""
        return self.num_pages - 1 - self.num_available

    def num_unused(self, pages: Sequence[int]) -> int:
        """Count those of some pages that nobody holds: sharing them makes fewer available."""
        return sum(self._num_users[page] == 0 for page in pages)

    def allocate(self, count: int) -> list[int]:
        """Take pages, free ones first; the caller has looked at `num_available`."""
        assert 0 <= count <= self.num_available, f"{count} of {self.num_available} pages"
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._num_users[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that the prefix index found, whether others hold them or nobody does."""
        for page in pages:
            assert self._remembered[page], f"page {page} was not found in the index"
            if self._num_users[page] == 0:
                del self._evictable[page]
            self._num_users[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Give up a sequence's pages, which are in its order."""
        for page in reversed(pages):
            assert self._num_users[page] > 0, f"page {page} is not in use"
            self._num_users[page] -= 1
            if self._num_users[page] > 0:
                continue
            if self._remembered[page]:
                self._evictable[page] = None
            else:
                self._free.append(page)

    def remember(self, page: int) -> None:
        """Keep a page that is in use when its users have left, for the prefix index."""
        assert self._num_users[page] > 0, f"page {page} is not in use"
        assert not self._remembered[page], f"page {page} is remembered already"
        self._remembered[page] = 1

    def forget(self, pages: Sequence[int]) -> None:
        """No longer keep pages, because the prefix index has forgotten them."""
        for page in pages:
            assert self._remembered[page], f"page {page} is not remembered"
            self._remembered[page] = 0
            if self._num_users[page] == 0:
                del self._evictable[page]
                self._free.append(page)

    def check(self) -> None:
        """Assert that every page is in exactly one state; reads all of them, so for tests."""
        for page in range(1, self.num_pages):
            unused = self._num_users[page] == 0
            kept = bool(self._remembered[page])
            assert (page in self._evictable) == (unused and kept), f"page {page}"
            assert self._num_users[page] >= 0, f"page {page}"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert free == {
            page
            for page in range(1, self.num_pages)
            if self._num_users[page] == 0 and not self._remembered[page]
        }, "a page was lost"

    def _evict(self) -> int:
        page, _ = self._evictable.popitem(last=False)
        self._remembered[page] = 0
        self._on_evict(page)
        return page
