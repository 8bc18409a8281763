"""GPTQ: the values of the algorithm as it is first explained, and outputs that are less off."""

import numpy as np
import pytest

from checkpoints_tools.calibration import gptq
from checkpoints_tools.calibration.grid import (
    Grid,
    Kind,
    decode,
    encode,
    fit_best,
    numbers_of,
    plainly,
)
from tests.checkpoints_tools.calibration.matrices import KINDS, inputs, matrix

OUTER, INNER, TOKENS = 12, 192, 400  # more than one block of columns


def damped(gram: np.ndarray) -> np.ndarray:
    return gram + gptq.DAMPING * np.diagonal(gram).mean() * np.eye(len(gram))


def eliminated(inverse: np.ndarray, column: int) -> np.ndarray:
    """Take a column out of an inverse: the inverse without its row and column in the matrix."""
    row = inverse[column]
    return inverse - np.outer(row, row) / inverse[column, column]


def column_by_column(numbers: np.ndarray, gram: np.ndarray, kind: Kind, by_use: bool) -> np.ndarray:
    """Quantize as section 2 of the paper says: whole inverses, every column at once, no blocks."""
    order = np.argsort(-np.diagonal(gram), kind="stable") if by_use else np.arange(len(gram))
    inverse, costs = np.linalg.inv(damped(gram)), np.empty(len(gram))
    for column in order:
        costs[column] = 1 / inverse[column, column]
        inverse = eliminated(inverse, column)
    left, done = numbers.astype(np.float64), np.empty_like(numbers, np.float64)
    inverse = np.linalg.inv(damped(gram))
    grids: dict[int, Grid] = {}
    for column in order:
        group = column // kind.group
        here = slice(group * kind.group, (group + 1) * kind.group)
        if group not in grids:
            source = numbers.astype(np.float64) if by_use else left
            grids[group] = fit_best(source[:, here], costs[here], kind)
        now = left[:, column].copy()
        done[:, column] = decode(encode(now, grids[group]), grids[group])
        error = (now - done[:, column]) / inverse[column, column]
        left = left - np.outer(error, inverse[column])
        inverse = eliminated(inverse, column)
    return done


def outputs_off(x: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    return float(np.square(np.float64(x) @ (np.float64(after) - before).T).sum())


@pytest.mark.parametrize("by_use", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_algorithm_column_by_column(kind, by_use):
    numbers, x = matrix(OUTER, INNER), np.float64(inputs(TOKENS, INNER))
    gram = x.T @ x
    found = numbers_of(gptq.solve(numbers, gram, kind, by_use=by_use))
    expected = column_by_column(numbers, gram, kind, by_use)
    # Both are float64 and differ in their last bits; what is decoded is rounded to float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by_use", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_less_off_than_by_rounding(kind, by_use):
    numbers, x = matrix(OUTER, INNER), inputs(TOKENS, INNER)
    gram = np.float64(x).T @ np.float64(x)
    found = numbers_of(gptq.solve(numbers, gram, kind, by_use=by_use))
    plain = numbers_of(plainly(numbers, kind))
    assert outputs_off(x, numbers, found) < 0.5 * outputs_off(x, numbers, plain)


def test_independent_inputs_leave_only_rounding():
    kind = KINDS[0]
    numbers = matrix(OUTER, 64)
    found = gptq.solve(numbers, np.eye(64) * 7.0, kind, by_use=False)
    groups = np.float64(numbers).reshape(OUTER, 2, 32)
    grid = fit_best(groups, np.ones(32), kind)
    wide = Grid(grid.scales[..., None], grid.zeros[..., None])
    np.testing.assert_array_equal(found.values, encode(groups, wide).reshape(OUTER, 64))


def test_a_column_that_is_never_used_is_rounded_and_disturbs_nobody():
    kind = KINDS[0]
    numbers, x = matrix(OUTER, 64), inputs(TOKENS, 64)
    x[:, 5] = 0
    found = gptq.solve(numbers, np.float64(x).T @ np.float64(x), kind, by_use=False)
    scales = np.repeat(found.scales, 32, axis=1)
    assert (np.abs(numbers_of(found) - numbers)[:, 5] <= 1.5 * scales[:, 5]).all()
    plain = numbers_of(plainly(numbers, kind))
    assert outputs_off(x, numbers, numbers_of(found)) < 0.5 * outputs_off(x, numbers, plain)


def test_how_large_inputs_are_decides_nothing():
    numbers, x = matrix(OUTER, 64), np.float64(inputs(TOKENS, 64))
    x[:, 5] = 0
    gram = x.T @ x
    found = [gptq.solve(numbers, gram * size, KINDS[1], by_use=False) for size in (1, 2.0**-60)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    none = gptq.solve(numbers, gram * 0, KINDS[0], by_use=False)
    np.testing.assert_allclose(numbers_of(none), numbers, atol=np.abs(numbers).max() / 7)


def test_rows_that_are_done_in_parts_are_the_same(monkeypatch):
    numbers, x = matrix(OUTER, 64), np.float64(inputs(TOKENS, 64))
    whole = gptq.solve(numbers, x.T @ x, KINDS[1], by_use=True)
    monkeypatch.setattr(gptq, "ROWS_AT_ONCE", 5)
    parts = gptq.solve(numbers, x.T @ x, KINDS[1], by_use=True)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_factor_is_that_of_the_inverse():
    x = np.float64(inputs(TOKENS, 64))
    factor = gptq.inverse_factor(x.T @ x)
    np.testing.assert_array_equal(factor, np.triu(factor))
    product = factor.T @ factor @ damped(x.T @ x)
    np.testing.assert_allclose(product, np.eye(64), atol=1e-10)
