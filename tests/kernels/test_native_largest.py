"""The largest number of each row in C++ is numpy's, and says of a NaN that there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.native.largest import largest
from rtp_jax.kernels.native.library import Library
from rtp_jax.runner.draw import most_likely


def rows_of(width: int) -> np.ndarray:
    """Draw rows: plain, with ties, all equal, of -inf, with one number, infinite, and broken."""
    rows = np.random.default_rng(width).normal(size=(9, width)).astype(np.float32)
    rows[1] = np.round(rows[1])
    rows[2], rows[3], rows[4], rows[5] = -3.0, -np.inf, -np.inf, -np.inf
    rows[4, width // 2] = -7.0
    rows[5, -1] = np.inf
    rows[6, width // 3] = np.nan
    rows[7, -1] = rows[7].max() + 1
    rows[8] = np.nan
    return rows


@pytest.mark.parametrize("width", [1, 15, 513, 16_400, 70_001])
def test_it_is_the_first_of_the_largest(level: Library, width):
    rows = rows_of(width)
    broken = np.isnan(rows).any(axis=1)
    padded = np.pad(rows, ((0, 0), (0, 7)), constant_values=1e9)
    places, numbers = jax.jit(functools.partial(largest, level, columns=width))(padded)
    np.testing.assert_array_equal(np.asarray(places)[~broken], rows.argmax(axis=1)[~broken])
    np.testing.assert_array_equal(numbers, np.where(broken, np.inf, rows.max(axis=1)))
    assert ((np.asarray(places) >= 0) & (np.asarray(places) < width)).all()


@pytest.mark.parametrize("width", [128, 1000])
def test_xla_finds_the_same(level: Library, width):
    rows = rows_of(width)
    whole = ~np.isnan(rows).any(axis=1)
    ours, right = (most_likely(jnp.asarray(rows), width, native) for native in (level.level, None))
    for found, expected in zip(ours, right, strict=True):
        np.testing.assert_array_equal(np.asarray(found)[whole], np.asarray(expected)[whole])
