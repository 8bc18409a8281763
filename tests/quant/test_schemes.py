"""Schemes: what is encoded decodes to numbers within half a step, and layouts are as told."""

import ml_dtypes
import numpy as np
import pytest

from rtp_jax.quant.schemes import (
    SCHEMES,
    dequantize,
    num_groups,
    quantize,
    values_dtype,
    values_shape,
)

OUTER, INNER = 24, 384


def matrix(dtype=np.float32) -> np.ndarray:
    """Rows of very different sizes."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((OUTER, INNER)) * 10.0 ** draw.integers(-6, 6, (OUTER, 1))
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_numbers_come_back_within_half_a_step(name, dtype):
    scheme, numbers = SCHEMES[name], matrix(dtype)

    values, scales = quantize(numbers, scheme)

    assert (values.shape, values.dtype) == (
        values_shape(scheme, OUTER, INNER),
        values_dtype(scheme),
    )
    assert (scales.shape, scales.dtype) == ((OUTER, num_groups(scheme, INNER)), np.float32)
    step = np.repeat(np.abs(scales), INNER // scales.shape[1], axis=1)
    error = np.abs(dequantize(values, scales, scheme) - numbers.astype(np.float32))
    if scheme.floating:  # three bits of mantissa, down to 2**-6
        exponent = np.floor(np.log2(np.maximum(np.abs(numbers.astype(np.float32)) / step, 2**-6)))
        step *= 2 ** (exponent - 3)
    # int4 has one value less on the side opposite to its largest number: a whole step there.
    within = 1.0 if scheme.bits == 4 else 0.5
    assert (error <= step * (within + 1e-5)).all()
    assert np.median(error / step) < 0.3


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay_zeros(name):
    numbers = matrix()
    numbers[3] = 0
    decoded = dequantize(*quantize(numbers, SCHEMES[name]), SCHEMES[name])
    assert not decoded[3].any()
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_the_largest_number_is_kept(name):
    numbers = matrix()
    at = np.abs(numbers).argmax(1)[:, None]
    decoded = dequantize(*quantize(numbers, SCHEMES[name]), SCHEMES[name])
    expected = np.take_along_axis(numbers, at, 1)
    np.testing.assert_allclose(np.take_along_axis(decoded, at, 1), expected, rtol=1e-6)


def test_the_even_number_of_int4_is_in_the_low_half():
    numbers = np.zeros((1, 128), np.float32)
    numbers[0, :3] = -8, 7, 3  # the scale is 1, so value 0, 15 and 11
    values, scales = quantize(numbers, SCHEMES["int4"])
    assert scales.tolist() == [[1.0]]
    assert values[0, :3].tolist() == [0xF0, 0x8B, 0x88]


def test_half_a_group_is_our_own_mistake():
    with pytest.raises(AssertionError, match="not whole groups of 128"):
        num_groups(SCHEMES["int4"], 192)
