"""Staging: what is taken does not overlap, stays within the ring, and is freed in order."""

import random
from collections import deque

import pytest

from rtp_jax.weights.staging import Staging


def test_a_large_piece_has_memory_of_its_own_and_one_is_there_at_a_time():
    staging = Staging(1 << 20)
    large = staging.take(5 << 20)
    assert large is not None
    assert large.nbytes == 5 << 20
    assert staging.take(5 << 20) is None
    assert staging.take(1000) is not None
    staging.give_back_oldest()
    assert staging.take(5 << 20) is not None


def test_what_is_free_again_serves_again():
    staging = Staging(1 << 20)
    first = staging.take(5000)
    staging.give_back_oldest()
    second = staging.take(8000)
    assert first is not None
    assert second is not None
    assert first.ctypes.data == second.ctypes.data


@pytest.mark.parametrize("seed", range(5))
def test_pieces_never_overlap_and_there_is_room_for_most(seed):
    size = 10_000
    staging, chance, taken = Staging(size), random.Random(seed), deque()
    refused = []
    for _ in range(3000):
        wanted = chance.randrange(0, size // 4)
        memory = staging.take(wanted) if chance.random() < 0.55 else None
        if memory is not None:
            assert memory.nbytes == wanted
            assert memory.ctypes.data % 64 == 0
            memory[:] = len(taken) % 251
            taken.append((memory, len(taken) % 251))
        elif taken:
            refused.append(sum(m.nbytes for m, _ in taken))
            memory, mark = taken.popleft()
            assert (memory == mark).all()  # nobody else wrote there
            staging.give_back_oldest()
    assert max(refused) > 0.6 * size
