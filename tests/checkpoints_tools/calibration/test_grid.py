"""Grids of groups: every number goes to the nearest value, and a search only makes it better."""

import ml_dtypes
import numpy as np
import pytest

from checkpoints_tools.calibration.grid import (
    Grid,
    Kind,
    decode,
    encode,
    fit,
    fit_best,
    in_groups,
    numbers_of,
    plainly,
)
from checkpoints_tools.quantize import SCHEMES, round_to, scales_of
from tests.checkpoints_tools.calibration.matrices import KINDS, matrix


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_goes_to_the_nearest_value(kind):
    groups = in_groups(matrix(8, 64).astype(np.float64), kind.group)
    grid = fit(groups, kind)
    wide = Grid(grid.scales[..., None], grid.zeros[..., None])
    found = decode(encode(groups, wide), wide)
    every = decode(np.arange(-8, 8), Grid(wide.scales[..., None], wide.zeros[..., None]))
    nearest = np.abs(every - groups[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(found - groups), nearest, atol=1e-12)


def test_plain_rounding_is_that_of_the_int4_scheme():
    kind = Kind(32, True, np.dtype(np.float32))
    numbers = matrix(5, 64)
    scheme = SCHEMES["int4"].__class__(format="pack-quantized", bits=4, group=32)
    scales = scales_of(numbers, scheme, kind.dtype)
    found = plainly(numbers, kind)
    # The scale is computed in float32 there and in float64 here, so its last bit may differ.
    np.testing.assert_allclose(found.scales, scales, rtol=2e-7)
    words = round_to(numbers, found.scales, scheme)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    values = (words.view(np.uint32)[..., None] >> shifts & 15).reshape(5, 64).astype(int) - 8
    # The largest of a group may lie right between two values, where the last bit decides.
    between = np.abs(np.abs(numbers / np.repeat(scales, 32, axis=1)) - 7.5) < 1e-5
    np.testing.assert_array_equal(found.values[~between], values[~between])
    assert between.sum() <= found.scales.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_never_makes_it_worse(kind):
    groups = in_groups(matrix(16, 128).astype(np.float64), kind.group)
    weight = np.random.default_rng(1).uniform(0.1, 5, groups.shape)

    def error(grid: Grid) -> np.ndarray:
        wide = Grid(grid.scales[..., None], grid.zeros[..., None])
        apart = decode(encode(groups, wide), wide) - groups
        return (weight * apart * apart).sum(-1)

    whole, best = error(fit(groups, kind)), error(fit_best(groups, weight, kind))
    assert (best <= whole).all()
    assert best.sum() < 0.95 * whole.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0.0, 3.0, -3.0])
def test_groups_of_equal_numbers_are_kept(kind, number):
    numbers = np.full((2, 64), number, np.float32)
    found = numbers_of(plainly(numbers, kind))
    # A symmetric group of 3 is cut at 7 steps of 3 / 7.5; scales of bfloat16 are off by 2^-9.
    np.testing.assert_allclose(found, numbers, rtol=0.07 if kind.symmetric else 0.004)


def test_scales_are_rounded_before_they_divide():
    kind = Kind(32, False, np.dtype(ml_dtypes.bfloat16))
    found = plainly(matrix(4, 32), kind)
    assert found.scales.dtype == kind.dtype
    grid = fit(in_groups(matrix(4, 32).astype(np.float64), 32), kind)
    np.testing.assert_array_equal(grid.scales.astype(kind.dtype).astype(np.float64), grid.scales)
