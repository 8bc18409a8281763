"""Layout and dtype: every pair of floats, every layout, against NumPy's own `astype`."""

import ml_dtypes
import numpy as np
import pytest

from rtp_jax.weights.convert import aligned, convertible, overflowed, write

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("shape", [(270, 33), (33, 513), (5,), (3, 40, 50), (), (0, 3)])
def test_rounding_is_that_of_astype_in_any_layout(source, target, shape):
    numbers = np.asarray(RANDOM.standard_normal(shape)).astype(source)
    for layout in (numbers, numbers.T):
        result = np.empty(layout.shape, target)
        write(result, layout)
        np.testing.assert_array_equal(result, layout.astype(target))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_infinities_nans_and_zeros_stay(source, target):
    numbers = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], source)
    result = np.empty(5, target)
    write(result, numbers)
    np.testing.assert_array_equal(np.float32(result), np.float32(numbers))
    assert np.signbit(result[4])
    assert not overflowed(result, numbers)


@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16])
def test_a_number_too_large_for_float16_is_noticed(source):
    numbers = np.array([1.0, 1e6], source)
    result = np.empty(2, np.float16)
    write(result, numbers)
    assert overflowed(result, numbers)


def test_a_tensor_that_is_not_aligned_in_its_file_is_read():
    memory = np.zeros(4 * 12 + 1, np.uint8)
    numbers = np.ndarray((3, 4), np.float32, memory[1:])
    numbers[...] = np.arange(12).reshape(3, 4)
    result = np.empty((4, 3), ml_dtypes.bfloat16)
    write(result, numbers.T)
    np.testing.assert_array_equal(np.float32(result), np.arange(12).reshape(3, 4).T)


def test_only_floats_change_their_dtype():
    assert convertible(np.dtype(np.int8), np.dtype(np.int8))
    assert not convertible(np.dtype(np.int8), np.dtype(np.float32))
    assert not convertible(np.dtype(np.float64), np.dtype(np.float32))
    assert not convertible(np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.float16))


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5)])
def test_buffers_begin_where_jax_takes_them(shape):
    array = aligned(shape, np.dtype(ml_dtypes.bfloat16))
    assert array.shape == shape
    assert not array.size or array.ctypes.data % 64 == 0
