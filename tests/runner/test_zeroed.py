"""Large arrays are zero though nobody wrote them, belong to the device, and cost nothing yet."""

import ctypes

import jax
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.runner.host_memory import HUGE_PAGE, zero_untouched
from rtp_jax.runner.zeroed import LARGE, maker, zero

SHAPE = (3, LARGE // 4 + 7)  # no multiple of a page
DTYPE = np.dtype(np.uint16)


@pytest.fixture(scope="module", autouse=True)
def native() -> None:
    """The call that writes nothing is one of the native kernels."""
    if reason := library.load(native_cache()):
        pytest.skip(reason)


def level() -> str:
    """Name the level that is loaded."""
    kernels = library.loaded()
    assert kernels is not None
    return kernels.level


def zeroed(shape: tuple[int, ...]) -> jax.Array:
    """Make an array as the runner does."""
    described = jax.ShapeDtypeStruct(shape, DTYPE)
    array = jax.jit(maker(described, level()))()
    zero(array, level())
    return array


@pytest.fixture
def memory():
    """Bytes that are all set, and no multiple of a page."""
    array = np.full(4 * HUGE_PAGE + 777, 0xFF, np.uint8)
    return array[13:]


def test_a_large_array_is_zero_also_where_memory_was_used_before():
    for _ in range(3):
        array = zeroed(SHAPE)
        assert array.shape == SHAPE
        assert array.dtype == DTYPE
        assert not np.asarray(array).any()
        ctypes.memset(array.unsafe_buffer_pointer(), 0xFF, array.nbytes)
        del array


def test_it_can_be_donated():
    set_one = jax.jit(lambda x: x.at[1, 5].set(7), donate_argnums=0)
    array = zeroed(SHAPE)
    address = array.unsafe_buffer_pointer()
    array = jax.block_until_ready(set_one(array))
    assert array.unsafe_buffer_pointer() == address
    assert np.asarray(array).sum() == 7
    assert array[1, 5] == 7


def test_it_takes_no_memory_until_it_is_touched():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    zeroed(SHAPE)  # what is made once
    before = resident()
    array = zeroed(SHAPE)
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


def test_a_small_array_is_written_by_its_program():
    described = jax.ShapeDtypeStruct((4, 5), DTYPE)
    assert not np.asarray(jax.jit(maker(described, level()))()).any()


def test_a_large_array_is_written_by_its_program_where_nothing_native_is_wanted():
    described = jax.ShapeDtypeStruct(SHAPE, DTYPE)
    assert "rtp_unwritten" in jax.jit(maker(described, level())).lower().as_text()
    assert "rtp_unwritten" not in jax.jit(maker(described, None)).lower().as_text()


def test_a_tree_of_arrays_is_zeroed_whatever_their_sizes():
    described = (jax.ShapeDtypeStruct(SHAPE, DTYPE), {"small": jax.ShapeDtypeStruct((3,), DTYPE)})
    arrays = jax.jit(maker(described, level()))()
    zero(arrays, level())
    assert [array.shape for array in jax.tree.leaves(arrays)] == [SHAPE, (3,)]
    assert not any(np.asarray(array).any() for array in jax.tree.leaves(arrays))
