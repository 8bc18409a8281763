"""The prefix index: the longest beginning, never a wrong page, never a child without its parent."""

import pytest

from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.cache.prefix_index import PrefixIndex

IDENTITY = PageIdentity(b"key", page_size=2, model_epoch="e", kv_scheme="s")


def chain_of(*ids: int, salt: str = "") -> PageChain:
    chain = PageChain(IDENTITY, IDENTITY.root(cache_salt=salt))
    chain.extend(ids)
    return chain


def index_of(chain: PageChain, pages: list[int]) -> PrefixIndex:
    index = PrefixIndex()
    for at in range(len(chain)):
        assert index.insert(chain, at, pages)
    return index


@pytest.mark.smoke
def test_the_longest_beginning_is_found():
    index = index_of(chain_of(1, 2, 3, 4, 5, 6), [10, 11, 12])
    assert index.match(chain_of(1, 2, 3, 4, 5, 6), 3) == [10, 11, 12]
    assert index.match(chain_of(1, 2, 3, 4, 9, 6), 3) == [10, 11]
    assert index.match(chain_of(9, 2, 3, 4, 5, 6), 3) == []
    assert index.match(chain_of(1, 2, salt="x"), 1) == []


def test_a_match_has_a_limit():
    index = index_of(chain_of(1, 2, 3, 4), [10, 11])
    assert index.match(chain_of(1, 2, 3, 4), 1) == [10]
    assert index.match(chain_of(1, 2, 3, 4), 0) == []


def test_equal_hashes_of_different_tokens_are_no_match():
    chain, forged = chain_of(1, 2, 3, 4), chain_of(1, 2, 5, 6)
    forged.keys[1] = chain.keys[1]
    index = index_of(chain, [10, 11])
    assert index.match(forged, 2) == [10]


def test_equal_hashes_behind_different_parents_are_no_match():
    chain, forged = chain_of(1, 2, 3, 4), chain_of(7, 8, 3, 4)
    index = index_of(chain, [10, 11])
    assert index.insert(forged, 0, [20])
    forged.keys[1] = chain.keys[1]
    assert index.match(forged, 2) == [20]


def test_a_page_that_is_known_already_ends_the_insertion():
    index = index_of(chain_of(1, 2, 3, 4), [10, 11])
    twin = chain_of(1, 2, 3, 4)
    assert not index.insert(twin, 0, [20, 21])
    assert not index.insert(twin, 1, [20, 21])
    assert index.match(twin, 2) == [10, 11]
    assert 20 not in index


def test_a_child_is_indexed_only_by_who_holds_the_parent():
    index = index_of(chain_of(1, 2), [10])
    child = chain_of(1, 2, 3, 4)
    assert not index.insert(child, 1, [20, 21])
    assert index.insert(child, 1, [10, 21])
    orphan = chain_of(8, 8, 3, 4)
    assert not index.insert(orphan, 1, [30, 31])


def test_a_page_has_one_identity():
    index = index_of(chain_of(1, 2), [10])
    with pytest.raises(AssertionError, match="another identity"):
        index.insert(chain_of(3, 4), 0, [10])


def test_evicted_pages_are_not_found():
    index = index_of(chain_of(1, 2, 3, 4), [10, 11])
    index.evict(11)
    assert index.match(chain_of(1, 2, 3, 4), 2) == [10]
    assert len(index) == 1
    assert 11 not in index


def test_forgetting_a_chain_forgets_its_branches_and_nothing_else():
    index = index_of(chain_of(1, 2, 3, 4), [10, 11])
    assert index.insert(chain_of(1, 2, 5, 6), 1, [10, 12])
    assert index.insert(chain_of(1, 2, 5, 6, 7, 7), 2, [10, 12, 13])
    assert index.insert(chain_of(9, 9), 0, [14])
    assert sorted(index.forget(chain_of(1, 2))) == [10, 11, 12, 13]
    assert index.match(chain_of(9, 9), 1) == [14]
    assert index.forget(chain_of(1, 2)) == []


def test_clearing_returns_all_pages():
    index = index_of(chain_of(1, 2, 3, 4), [10, 11])
    assert sorted(index.clear()) == [10, 11]
    assert len(index) == 0
