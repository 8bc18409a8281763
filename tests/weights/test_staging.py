"""Staging: what is taken stays below the limit, what is given back serves again."""

import random

from rtp_jax.weights.staging import Staging


def test_one_buffer_of_any_size_may_be_taken():
    staging = Staging(1 << 20)
    big = staging.take(5 << 20)
    assert big is not None
    assert big.nbytes >= 5 << 20
    assert staging.take(1) is None
    staging.give_back(big)
    assert staging.idle_bytes == 0  # it is not kept
    assert staging.take(1) is not None


def test_buffers_serve_again_and_lie_on_64_bytes():
    staging = Staging(1 << 20)
    first = staging.take(5000)
    assert first is not None
    assert first.ctypes.data % 64 == 0
    staging.give_back(first)
    assert staging.take(8000) is first


def test_memory_stays_below_the_limit_whatever_comes():
    staging, chance, taken = Staging(1 << 20), random.Random(0), []
    for _ in range(2000):
        if chance.random() < 0.5 and taken:
            staging.give_back(taken.pop(chance.randrange(len(taken))))
        elif (buffer := staging.take(chance.randrange(1, 1 << 18))) is not None:
            taken.append(buffer)
        assert staging.taken == sum(buffer.nbytes for buffer in taken)
        assert staging.taken + staging.idle_bytes <= staging.limit
