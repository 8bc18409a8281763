"""Large arrays are zero though nobody wrote them, belong to the device, and cost nothing yet."""

import ctypes

import jax
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.runner import zeroed as module
from rtp_jax.runner.host_memory import HUGE_PAGE, zero_untouched
from rtp_jax.runner.zeroed import LARGE, zeroed

SHAPE = (3, LARGE // 4 + 7)  # no multiple of a page
DTYPE = np.dtype(np.uint16)
CPU = jax.devices("cpu")[0]


@pytest.fixture(scope="module", autouse=True)
def native():
    """The call that writes nothing is one of the native kernels."""
    if reason := library.load(native_cache()):
        pytest.skip(reason)


@pytest.fixture
def memory():
    """Bytes that are all set, and no multiple of a page."""
    array = np.full(4 * HUGE_PAGE + 777, 0xFF, np.uint8)
    return array[13:]


def test_a_large_array_is_zero_also_where_memory_was_used_before():
    for _ in range(3):
        array = zeroed(SHAPE, DTYPE, CPU)
        assert array.shape == SHAPE
        assert array.dtype == DTYPE
        assert not np.asarray(array).any()
        ctypes.memset(array.unsafe_buffer_pointer(), 0xFF, array.nbytes)
        del array


def test_it_can_be_donated():
    set_one = jax.jit(lambda x: x.at[1, 5].set(7), donate_argnums=0)
    array = zeroed(SHAPE, DTYPE, CPU)
    address = array.unsafe_buffer_pointer()
    array = jax.block_until_ready(set_one(array))
    assert array.unsafe_buffer_pointer() == address
    assert np.asarray(array).sum() == 7
    assert array[1, 5] == 7


def test_it_takes_no_memory_until_it_is_touched():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    zeroed(SHAPE, DTYPE, CPU)  # what is made once
    before = resident()
    array = zeroed(SHAPE, DTYPE, CPU)
    assert resident() - before < array.nbytes // 4
    assert not np.asarray(array).any()


def test_zeroing_reaches_the_borders_and_nothing_else(memory):
    part = memory[5:-5]
    zero_untouched(part.ctypes.data, part.size)
    assert not part.any()
    assert memory[:5].all()
    assert memory[-5:].all()


def test_less_than_a_huge_page_is_zeroed_as_well(memory):
    zero_untouched(memory.ctypes.data, 100)
    assert not memory[:100].any()
    assert memory[100:].all()


def test_a_system_that_does_not_zero_is_not_relied_on(memory, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    zero_untouched(memory.ctypes.data, memory.size)
    assert not memory.any()


def test_a_small_array_is_made_as_ever(monkeypatch):
    monkeypatch.setattr(module, "_unwritten", None)
    assert not np.asarray(zeroed((4, 5), DTYPE, CPU)).any()
