"""AWQ: inputs that matter get finer steps, and the matrix or norm before them pays for it.

Multiplying an input column of W by s and dividing what feeds it by s changes no output, but moves
the column's numbers within the steps of their groups.  How much a column matters is told by the
mean magnitude m of its inputs, and s = m^alpha; alpha is searched on a grid by the error of
outputs.  Then each group may give up the ends of its range where that makes outputs better.

Source: Lin et al. 2023, AWQ (arXiv:2306.00978), section 3.2 and its appendix on clipping.
"""

import numpy as np

from checkpoints_tools.calibration.grid import (
    SHRINKS,
    Encoded,
    Grid,
    Kind,
    fit,
    in_groups,
    numbers_of,
    plainly,
    rounded,
)

ALPHAS = tuple(i / 20 for i in range(20))
LEAST_MAGNITUDE = 1e-4  # of an input, as a share of the largest: what is never used decides nothing
ROWS_AT_ONCE = 256
SEARCH_ROWS = 512  # of each matrix: factors are shared by all rows, and some of them tell


def scales_for(magnitude: np.ndarray, alpha: float) -> np.ndarray:
    """Give the factor of each input column, around 1."""
    floor = LEAST_MAGNITUDE * max(float(magnitude.max()), np.finfo(np.float64).tiny)
    factors = np.maximum(magnitude, floor) ** alpha
    return factors / np.sqrt(factors.max() * factors.min())


def search(
    matrices: list[np.ndarray],
    inputs: np.ndarray,
    magnitude: np.ndarray,
    kind: Kind,
    spread: np.ndarray | None = None,
) -> np.ndarray:
    """Find the factors that make the outputs of matrices with one input best.

    Args:
      matrices: [outer, inner] each.
      inputs: some of what they are given [tokens, inner].
      magnitude: the mean of |x| over all inputs, for each factor.
      kind: of the groups.
      spread: which factor belongs to each input column [inner]; None: each has its own.

    Returns:
      Factors [inner], or as many as `magnitude` has; all 1 where nothing is better.
    """
    best, least = np.ones_like(magnitude), np.inf
    matrices = [matrix[:: -(-len(matrix) // SEARCH_ROWS)] for matrix in matrices]
    for alpha in ALPHAS:
        factors = scales_for(magnitude, alpha)
        wide = factors if spread is None else factors[spread]
        error = sum(
            output_error(inputs, matrix - numbers_of(plainly(matrix * wide, kind)) / wide)
            for matrix in matrices
        )
        if error < least:
            best, least = factors, error
    return best


def output_error(inputs: np.ndarray, apart: np.ndarray) -> float:
    """Sum the squares of what inputs [tokens, inner] make of a difference [outer, inner]."""
    product = np.asarray(inputs, np.float32) @ apart.T.astype(np.float32)
    return float(np.square(product, dtype=np.float64).sum())


def clipped(matrix: np.ndarray, inputs: np.ndarray, kind: Kind) -> Encoded:
    """Round a matrix, each group over as much of its range as makes its part of outputs best.

    Args:
      matrix: [outer, inner].
      inputs: some of what it is given [tokens, inner].
      kind: of the groups.
    """
    x = in_groups(np.asarray(inputs, np.float64), kind.group)
    gram = np.einsum("tgi,tgj->gij", x, x, optimize=True)
    parts = [
        _fit_rows(
            in_groups(matrix[start : start + ROWS_AT_ONCE].astype(np.float64), kind.group),
            gram,
            kind,
        )
        for start in range(0, len(matrix), ROWS_AT_ONCE)
    ]
    grid = Grid(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    return rounded(matrix, grid, kind)


def _fit_rows(groups: np.ndarray, gram: np.ndarray, kind: Kind) -> Grid:
    """Choose the grids of some rows [rows, groups, group]."""
    best, least = fit(groups, kind), np.full(groups.shape[:2], np.inf)
    for shrink in SHRINKS:
        grid = fit(groups, kind, shrink)
        flat = rounded(groups.reshape(len(groups), -1), grid, kind)
        apart = (numbers_of(flat).reshape(groups.shape) - groups).swapaxes(0, 1)
        error = ((apart @ gram) * apart).sum(-1).T
        better = error < least
        best = Grid(*(np.where(better, new, old) for new, old in zip(grid, best, strict=True)))
        least = np.where(better, error, least)
    return best
