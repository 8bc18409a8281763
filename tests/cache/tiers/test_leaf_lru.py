"""The record that leaves is the longest unused one without children, as a plain list would say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_jax.cache.tiers.leaf_lru import LeafLru
from tests.cache.tiers.pages import key_of

CHAINS, LENGTH = 3, 5
places = st.tuples(st.integers(0, CHAINS - 1), st.integers(0, LENGTH - 1))
moves = st.lists(st.tuples(st.sampled_from(["add", "touch", "remove", "oldest"]), places))


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
        elif what == "remove":
            assert lru.remove(key) is here
            order = [each for each in order if each != (chain, at)]
        leaves = [(c, i) for c, i in order if (c, i + 1) not in order]
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
