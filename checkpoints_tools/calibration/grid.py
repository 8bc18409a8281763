"""Groups of a row and their 16 values: how numbers become int4, and what they are then.

A group has a scale, and in asymmetric grids a zero point from -8 to 7:

    number = (value - zero) * scale        value: -8..7

Scales are rounded to the dtype in which they are stored before anything is divided by them, so a
number is rounded to what a reader will compute.

Source: compressed-tensors 0.17 (the meaning of scales and zero points).
"""

from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

LOW, HIGH = -8, 7
STEPS = HIGH - LOW
# How much of its range a group may give up at either end, so that all others get finer steps.
SHRINKS = tuple(1 - 0.04 * i for i in range(11))


class Grid(NamedTuple):
    """Scales and zero points of groups; both float64, or any that broadcast with the numbers."""

    scales: np.ndarray
    zeros: np.ndarray


class Encoded(NamedTuple):
    """A matrix in int4."""

    values: np.ndarray  # [outer, inner] int8, -8..7
    scales: np.ndarray  # [outer, groups], in the dtype in which they are stored
    zeros: np.ndarray | None  # [outer, groups] int8, -8..7; None: all are 0


class Kind(NamedTuple):
    """What the groups of a matrix are like."""

    group: int
    symmetric: bool
    dtype: np.dtype  # of scales


def fit(numbers: np.ndarray, kind: Kind, shrink: float = 1.0) -> Grid:
    """Lay a grid over each group [..., group]: over its whole range, or a part of that.

    A group of zeros has zero point 0, as in compressed-tensors.

    Returns:
      Scales and zeros [...], float64.
    """
    if kind.symmetric:
        scales = np.abs(numbers).max(-1) * (shrink / (STEPS / 2))
        stored = _stored(scales, kind.dtype)
        return Grid(stored, np.zeros_like(stored))
    low = np.minimum(numbers.min(-1), 0) * shrink
    high = np.maximum(numbers.max(-1), 0) * shrink
    stored = _stored((high - low) / STEPS, kind.dtype)
    zeros = np.clip(np.rint(LOW - low / stored), LOW, HIGH)
    return Grid(stored, np.where(low == high, 0.0, zeros))


def _stored(scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round scales as they are stored; a group of zeros gets the smallest step of the dtype."""
    rounded = scales.astype(dtype)
    smallest = ml_dtypes.finfo(dtype).eps.astype(dtype)
    return np.where(rounded == 0, smallest, rounded).astype(np.float64)


def fit_best(
    numbers: np.ndarray, weight: np.ndarray, kind: Kind, shrinks: Sequence[float] = SHRINKS
) -> Grid:
    """Choose for each group [..., group] the shrink whose weighted squares of errors are least.

    Args:
      numbers: float64 [..., group].
      weight: of the error of each number, broadcast with `numbers`.
      kind: of the grid.
      shrinks: to try; of equal ones the first is taken.
    """
    best, least = fit(numbers, kind, shrinks[0]), np.full(numbers.shape[:-1], np.inf)
    for shrink in shrinks:
        grid = fit(numbers, kind, shrink)
        wide = Grid(grid.scales[..., None], grid.zeros[..., None])
        apart = decode(encode(numbers, wide), wide) - numbers
        error = (apart * apart * weight).sum(-1)
        better = error < least
        best = Grid(*(np.where(better, new, old) for new, old in zip(grid, best, strict=True)))
        least = np.where(better, error, least)
    return best


def encode(numbers: np.ndarray, grid: Grid) -> np.ndarray:
    """Round numbers to values, as float64."""
    return np.clip(np.rint(numbers / grid.scales + grid.zeros), LOW, HIGH)


def decode(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Give the numbers that values stand for."""
    return (values - grid.zeros) * grid.scales


def in_groups(matrix: np.ndarray, group: int) -> np.ndarray:
    """View [outer, inner] as [outer, groups, group]."""
    return matrix.reshape(len(matrix), -1, group)


def rounded(matrix: np.ndarray, grid: Grid, kind: Kind) -> Encoded:
    """Round every number of a matrix [outer, inner] to the grid [outer, groups] of its group."""
    wide = Grid(grid.scales[..., None], grid.zeros[..., None])
    values = encode(in_groups(matrix.astype(np.float64), kind.group), wide)
    return encoded(values.reshape(matrix.shape), grid, kind)


def encoded(values: np.ndarray, grid: Grid, kind: Kind) -> Encoded:
    """Put values [outer, inner] and their grid [outer, groups] into the dtypes of the file."""
    zeros = None if kind.symmetric else grid.zeros.astype(np.int8)
    return Encoded(values.astype(np.int8), grid.scales.astype(kind.dtype), zeros)


def numbers_of(matrix: Encoded) -> np.ndarray:
    """Decode a matrix to float32, as the engine does."""
    outer, groups = matrix.scales.shape
    values = matrix.values.reshape(outer, groups, -1).astype(np.float32)
    if matrix.zeros is not None:
        values = values - matrix.zeros[..., None].astype(np.float32)
    return (values * matrix.scales[..., None].astype(np.float32)).reshape(outer, -1)


def plainly(matrix: np.ndarray, kind: Kind) -> Encoded:
    """Round a matrix without regard to what it multiplies."""
    return rounded(matrix, fit(in_groups(matrix.astype(np.float64), kind.group), kind), kind)
