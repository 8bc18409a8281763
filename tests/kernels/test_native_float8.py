"""Float8 in C++: every one of its numbers, what is none, and how activations become float8."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rtp_jax.kernels.native import packing
from rtp_jax.kernels.native.linear import linear
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, SCHEMES
from tests.kernels.packed import numbers, packed_values

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
CASES = {"fp8": SCHEMES["fp8"], "fp8_block": FROM_CHECKPOINTS["fp8_block"]}


def every_float8() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(FLOAT8)


@pytest.mark.parametrize("name", CASES)
def test_every_float8_means_what_it_should(level, name):
    """One of each in every place of a tile, times one: products are numbers, small ones as well."""
    scheme = CASES[name]
    finite = every_float8()[np.isfinite(every_float8().astype(np.float32))]
    values = np.resize(finite, (256, 128))
    values = np.stack([np.roll(row, i) for i, row in enumerate(values)])
    packed = packed_values(values, np.ones((256, 1), np.float32), scheme)
    np.testing.assert_array_equal(packing.unpack(packed, 0, BFLOAT16), values.astype(np.float32))
    (out,) = linear(jnp.eye(128, dtype=BFLOAT16), [packed], 0, dtype=FLOAT32, level=level.level)
    # One becomes 448 / 448 of its scale: the nearest float32 of a 448th, times 448.
    np.testing.assert_allclose(out, values.astype(np.float32).T, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_number_spreads_over_its_row_alone(level, name):
    values = np.resize(every_float8()[:64], (17, 256))
    values[16, 200] = np.nan
    scheme = CASES[name]
    packed = packed_values(values, np.ones((17, 256 // (scheme.group or 256)), np.float32), scheme)
    x = numbers((3, 256), BFLOAT16, 20)
    (out,) = linear(jnp.asarray(x), [packed], 0, dtype=FLOAT32, level=level.level)
    assert np.isfinite(out[:, :16]).all()
    assert np.isnan(out[:, 16]).all()
    x[1, 7] = np.nan
    (out,) = linear(jnp.asarray(x), [packed], 0, dtype=FLOAT32, level=level.level)
    assert np.isfinite(out[::2, :16]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("name", CASES)
def test_x_is_rounded_to_float8_to_the_bit(level, name):
    """Float8 and halves between them, what is just beside those, and what is small."""
    scheme = CASES[name]
    positive = every_float8()[:127].astype(np.float32)
    halves = (positive[1:] + positive[:-1]) / 2
    marks = np.concatenate(
        [positive, halves, *(np.nextafter(halves, np.float32(s)) for s in (0, 500))]
    )
    x = np.zeros((len(marks), 128), np.float32)
    x[:, 0], x[:, 1:3] = 448, marks[:, None] * np.float32([1, -1])  # the scale is one
    identity = packed_values(np.eye(16, 128, dtype=FLOAT8), np.ones((16, 1)), scheme)
    (out,) = linear(jnp.asarray(x), [identity], 0, dtype=FLOAT32, level=level.level)
    np.testing.assert_array_equal(out[:, :3], x[:, :3].astype(FLOAT8))
