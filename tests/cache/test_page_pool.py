"""The page pool: each page in one state, eviction by age and from the leaves, misuse asserted."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.cache.page_pool import PagePool
from rtp_jax.cache.prefix_index import PrefixIndex

IDENTITY = PageIdentity(b"key", page_size=2, model_epoch="e", kv_scheme="s")


def pool_of(num_pages: int = 5) -> tuple[PagePool, list[int]]:
    evicted: list[int] = []
    return PagePool(num_pages, on_evict=evicted.append), evicted


@pytest.mark.smoke
def test_the_null_page_is_never_given_out():
    pool, _ = pool_of(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_available == 0
    assert pool.num_used == 4


def test_pages_that_nobody_remembers_are_free_at_once():
    pool, _ = pool_of()
    pages = pool.allocate(3)
    pool.free(pages)
    assert (pool.num_free, pool.num_evictable) == (4, 0)
    pool.check()


def test_remembered_pages_stay_until_there_is_no_other():
    pool, evicted = pool_of()
    pages = pool.allocate(2)
    for page in pages:
        pool.remember(page)
    pool.free(pages)
    assert (pool.num_free, pool.num_evictable) == (2, 2)
    pool.allocate(2)
    assert evicted == []
    pool.allocate(1)
    assert evicted == [pages[1]]  # the leaf
    pool.check()


def test_the_longest_unused_page_goes_first():
    pool, evicted = pool_of()
    first, second = pool.allocate(1), pool.allocate(1)
    for pages in (first, second):
        pool.remember(pages[0])
        pool.free(pages)
    pool.share(first)
    pool.free(first)
    pool.allocate(4)
    assert evicted == [*second, *first]


def test_shared_pages_are_used_until_the_last_one_leaves():
    pool, _ = pool_of()
    pages = pool.allocate(1)
    pool.remember(pages[0])
    pool.share(pages)
    pool.free(pages)
    assert pool.num_used == 1
    assert pool.num_unused(pages) == 0
    pool.free(pages)
    assert pool.num_unused(pages) == 1
    assert pool.num_evictable == 1


def test_forgotten_pages_are_free_if_nobody_uses_them():
    pool, _ = pool_of()
    used, unused = pool.allocate(2)
    for page in (used, unused):
        pool.remember(page)
    pool.free([unused])
    pool.forget([used, unused])
    assert (pool.num_free, pool.num_evictable, pool.num_used) == (3, 0, 1)
    pool.free([used])
    pool.check()


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda pool: pool.free([1]), "not in use"),
        (lambda pool: pool.free([0]), "not in use"),
        (lambda pool: pool.allocate(5), "5 of 4"),
        (lambda pool: pool.share([1]), "not found in the index"),
        (lambda pool: pool.remember(1), "not in use"),
        (lambda pool: pool.forget([1]), "not remembered"),
    ],
)
def test_misuse_is_asserted(misuse, words):
    pool, _ = pool_of()
    with pytest.raises(AssertionError, match=words):
        misuse(pool)


def test_a_page_is_not_freed_or_remembered_twice():
    pool, _ = pool_of()
    (page,) = pool.allocate(1)
    pool.remember(page)
    with pytest.raises(AssertionError, match="remembered already"):
        pool.remember(page)
    pool.free([page])
    with pytest.raises(AssertionError, match="not in use"):
        pool.free([page])


def test_a_pool_needs_a_page_beside_the_null_page():
    with pytest.raises(AssertionError, match="null page"):
        pool_of(1)


class PoolAndIndex(RuleBasedStateMachine):
    """Sequences that match, grow, index and free pages, against what each page should hold."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.pool = PagePool(9, on_evict=self.index.evict)
        self.live: list[tuple[PageChain, list[int]]] = []
        self.content: dict[int, tuple[int, ...]] = {}  # page: all tokens up to its end

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=4), keep=st.booleans())
    def begin(self, ids, keep):
        tokens = [token for token in ids for _ in range(2)]
        chain = PageChain(IDENTITY, IDENTITY.root())
        chain.extend(tokens)
        matched = self.index.match(chain, len(chain))
        for at, page in enumerate(matched):
            assert self.content[page] == tuple(tokens[: 2 * at + 2])
        missing = len(chain) - len(matched)
        if missing + self.pool.num_unused(matched) > self.pool.num_available:
            return
        self.pool.share(matched)
        pages = matched + self.pool.allocate(missing)
        for at in range(len(matched), len(pages)):
            self.content[pages[at]] = tuple(tokens[: 2 * at + 2])
        for at in range(len(matched), len(pages)):
            if not keep or not self.index.insert(chain, at, pages):
                break
            self.pool.remember(pages[at])
        self.live.append((chain, pages))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data):
        _, pages = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.free(pages)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def distrust(self, data):
        chain, _ = data.draw(st.sampled_from(self.live))
        self.pool.forget(self.index.forget(chain))

    @rule()
    def clear(self):
        self.pool.forget(self.index.clear())

    @invariant()
    def books_add_up(self):
        self.pool.check()
        held = {page for _, pages in self.live for page in pages}
        assert self.pool.num_used == len(held)
        pages = [entry.page for entry in self.index._by_key.values()]
        assert len(set(pages)) == len(pages) == len(held & set(pages)) + self.pool.num_evictable

    @invariant()
    def parents_outlive_children(self):
        keys = set(self.index._by_key)
        for entry in self.index._by_key.values():
            assert entry.parent in keys or entry.parent == IDENTITY.root()

    def teardown(self):
        for _, pages in self.live:
            self.pool.free(pages)
        assert self.pool.num_used == 0
        self.pool.check()


def test_any_history():
    run_state_machine_as_test(
        PoolAndIndex,
        settings=settings(
            max_examples=100, stateful_step_count=50, deadline=None, derandomize=True
        ),
    )
