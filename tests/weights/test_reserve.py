"""Memory that is made ready ahead: arrays of it are whole, apart, and survive it."""

import mmap
import time

import numpy as np
import pytest

from rtp_jax.weights import reserve
from rtp_jax.weights.reserve import SMALLEST, STEP, Reserve

FLOAT = np.dtype(np.float32)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_arrays_have_their_shape_lie_apart_and_outlive_the_reserve():
    shapes = [(3, 5), (1,), (7, 11, 2)]
    with Reserve(SMALLEST) as memory:
        arrays = [memory.take(shape, FLOAT) for shape in shapes]
        for number, array in enumerate(arrays):
            array[:] = number + 1
    assert [array.shape for array in arrays] == shapes
    assert [array.dtype for array in arrays] == [FLOAT] * 3
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    assert all((array == number + 1).all() for number, array in enumerate(arrays))


def test_memory_is_touched_before_anybody_asks():
    before = resident_bytes()
    with Reserve(SMALLEST):
        wait_until(lambda: resident_bytes() - before > SMALLEST * 0.9)


def test_what_was_written_stays_while_the_rest_is_touched(monkeypatch):
    monkeypatch.setattr(reserve, "STEP", STEP // 64)  # many steps, so that both go on together
    whole = (SMALLEST // 4,)
    with Reserve(SMALLEST) as memory:
        array = memory.take(whole, FLOAT)
        array[:] = 1
        wait_until(lambda: not memory._thread.is_alive())
    assert (array == 1).all()


def test_what_is_left_goes_back():
    with Reserve(2 * SMALLEST) as memory:
        taken = memory.take((SMALLEST // 4,), FLOAT)
        taken[:] = 1
        wait_until(lambda: not memory._thread.is_alive())
        before = resident_bytes()
    assert before - resident_bytes() > SMALLEST * 0.9
    assert (taken == 1).all()


@pytest.mark.parametrize("num_bytes", [0, SMALLEST - 1, SMALLEST])
def test_more_than_there_is_comes_from_elsewhere(num_bytes):
    with Reserve(num_bytes) as memory:
        array = memory.take((SMALLEST // 2,), FLOAT)
        array[:] = 1
    assert array.ctypes.data % 64 == 0
    assert array.sum() == array.size


def test_a_small_model_gets_no_thread():
    with Reserve(SMALLEST - 1) as memory:
        assert not memory._thread.is_alive()
        assert memory._memory.size == 0


def test_an_older_system_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(reserve, "_advise", lambda *_: -1)
    with Reserve(SMALLEST) as memory:
        array = memory.take((SMALLEST // 4,), FLOAT)
        array[:] = 1
    assert (array == 1).all()


def test_what_lies_behind_in_the_last_page_stays(monkeypatch):
    mine, around = [], []

    def within(shape, dtype):  # as a C heap might: others follow in the same page
        around.append(np.full(shape[0] + 2 * mmap.PAGESIZE, 7, dtype))
        start = -around[0].ctypes.data % mmap.PAGESIZE
        mine.append(around[0][start : start + shape[0] + 64])  # ends in the middle of a page
        return mine[0]

    monkeypatch.setattr(reserve, "aligned", within)
    with Reserve(SMALLEST):
        pass
    end = mine[0].ctypes.data - around[0].ctypes.data + mine[0].size
    assert (around[0][end:] == 7).all()
