"""GPTQ: columns are rounded one after the other, and those to come make up for each error.

What counts is not how far numbers of a matrix W are off but how far its outputs are, on inputs X:

    |X (W - Q)'|^2  =  sum over rows of (w - q) H (w - q)'        H = X' X

With U the upper factor of the inverse, H^-1 = U' U, rounding column j moves the columns behind it:

    e = (w_j - q_j) / U[j, j]        w_k -= e U[j, k]   for k > j

Columns are taken in blocks: within one, a column sees each error at once; those behind the block
get all its errors in one product.  Rows do not depend on each other.

Source: Frantar et al. 2022, GPTQ (arXiv:2210.17323), section 3.3 and algorithm 1.
"""

import numpy as np

from checkpoints_tools.calibration.grid import (
    Encoded,
    Grid,
    Kind,
    decode,
    encode,
    encoded,
    fit_best,
    in_groups,
)

DAMPING = 0.01  # of the mean of the diagonal, added to it
BLOCK = 128  # columns; a multiple of every group
ROWS_AT_ONCE = 4096  # so that the work on a matrix takes bounded memory


def inverse_factor(gram: np.ndarray) -> np.ndarray:
    """Give the upper U with inv(gram + damping) = U' U.

    Args:
      gram: X' X [inner, inner], float64.  A column that was never used has zeros there; it gets the
        damping alone, so that it is rounded by itself and its error costs little.
    """
    damped = gram.copy()
    diagonal = np.einsum("ii->i", damped)
    diagonal += DAMPING * (diagonal.mean() or 1.0)
    # With J the reversal of order: J H J = L L' makes H = R R' for the upper R = J L J, and then
    # inv(H) = inv(R)' inv(R).
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return np.triu(np.linalg.inv(lower)[::-1, ::-1])


def order_of(gram: np.ndarray) -> np.ndarray:
    """List the columns by how much they are used, the most first."""
    return np.argsort(-np.diagonal(gram), kind="stable")


def solve(matrix: np.ndarray, gram: np.ndarray, kind: Kind, *, by_use: bool) -> Encoded:
    """Quantize a matrix [outer, inner] for inputs whose products are in `gram`.

    Args:
      matrix: float32 or float64.
      gram: X' X [inner, inner], float64.
      kind: of the groups, which are neighbours whatever the order of rounding.
      by_use: take columns in the order of their use, so that the most used are rounded while all
        others can still make up for it.  Scales are then fixed before.  Otherwise a group gets its
        scale when its first column is due.
    """
    order = order_of(gram) if by_use else np.arange(len(gram))
    factor = inverse_factor(gram[np.ix_(order, order)] if by_use else gram)
    # What an error costs after all others have made up for it.
    cost = np.empty(len(order))
    cost[order] = 1 / np.square(np.diagonal(factor))
    parts = [
        _solve_rows(matrix[start : start + ROWS_AT_ONCE], factor, order, cost, kind, by_use)
        for start in range(0, len(matrix), ROWS_AT_ONCE)
    ]
    values, scales, zeros = (np.concatenate(each) for each in zip(*parts, strict=True))
    return encoded(values, Grid(scales, zeros), kind)


def _solve_rows(
    matrix: np.ndarray,
    factor: np.ndarray,
    order: np.ndarray,
    cost: np.ndarray,
    kind: Kind,
    by_use: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize some rows; columns are rows of the work, so that each lies in one piece."""
    outer, inner = matrix.shape
    work = np.ascontiguousarray(matrix.T, dtype=np.float64)[order]
    values = np.empty((inner, outer), np.int8)
    grid = Grid(np.empty((inner // kind.group, outer)), np.empty((inner // kind.group, outer)))
    if by_use:
        fitted = fit_best(
            in_groups(matrix.astype(np.float64), kind.group),
            in_groups(cost[None], kind.group),
            kind,
        )
        grid = Grid(fitted.scales.T, fitted.zeros.T)
    for start in range(0, inner, BLOCK):
        block = work[start : start + BLOCK]
        errors = np.empty_like(block)
        for row in range(len(block)):
            place = start + row
            column = order[place]
            group = column // kind.group
            if not by_use and column % kind.group == 0:
                here = slice(place, place + kind.group)
                grid.scales[group], grid.zeros[group] = fit_best(
                    block[row : row + kind.group].T, cost[here], kind
                )
            of_column = Grid(grid.scales[group], grid.zeros[group])
            value = encode(block[row], of_column)
            values[column] = value
            errors[row] = (block[row] - decode(value, of_column)) / factor[place, place]
            # Columns that are done change as well, and are not looked at again.
            block[row:] -= factor[place, place : start + len(block), None] * errors[row]
        behind = start + len(block)
        work[behind:] -= factor[start:behind, behind:].T @ errors
    return values.T, grid.scales.T, grid.zeros.T
