"""The record that leaves is the longest unused one without children, as a plain list would say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_jax.cache.tiers.leaf_lru import LeafLru
from tests.cache.tiers.pages import key_of

CHAINS, LENGTH = 3, 5
places = st.tuples(st.integers(0, CHAINS - 1), st.integers(0, LENGTH - 1))
moves = st.lists(st.tuples(st.sampled_from(["add", "touch", "back", "remove", "oldest"]), places))


def is_leaf(place: tuple[int, int], order: list[tuple[int, int]]) -> bool:
    return (place[0], place[1] + 1) not in order


@given(moves)
@settings(max_examples=300, deadline=None)
def test_it_agrees_with_a_list(done):
    lru = LeafLru()
    order: list[tuple[int, int]] = []  # oldest use first

    for what, (chain, at) in done:
        key, here = key_of(chain, at), (chain, at) in order
        if what == "add" and not here:
            lru.add(key, key_of(chain, at - 1), 10 + at)
            order.append((chain, at))
        elif what == "touch":
            lru.touch([key_of(chain, each) for each in range(at + 1)])
            for each in reversed(range(at + 1)):
                if (chain, each) in order:
                    order.remove((chain, each))
                    order.append((chain, each))
        elif what == "back":  # the newest first, some of them here already
            ticks = lru.reserve(at + 1)
            older = [each for each in order if each[0] != chain or each[1] > at]
            for each, tick in enumerate(ticks):
                if (chain, each) in order:
                    lru.date(key_of(chain, each), tick)
                else:
                    lru.add(key_of(chain, each), key_of(chain, each - 1), 10 + each, tick)
            order = older + [(chain, each) for each in reversed(range(at + 1))]
            leaf = lru.oldest(before=ticks[-1])
            assert leaf == next((key_of(*each) for each in older if is_leaf(each, order)), None)
        elif what == "remove":
            assert lru.remove(key) is here
            order = [each for each in order if each != (chain, at)]
        leaves = [each for each in order if is_leaf(each, order)]
        assert lru.oldest() == (key_of(*leaves[0]) if leaves else None)
        assert len(lru) == len(order)
        assert lru.total_bytes == sum(10 + i for _, i in order)
        assert (key in lru) is ((chain, at) in order)


def test_touching_for_ever_takes_no_memory():
    lru = LeafLru()
    lru.add(b"a", b"root", 1)
    for _ in range(10_000):
        lru.touch([b"a"])
    assert len(lru._leaves) < 200
