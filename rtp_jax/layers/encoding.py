"""Encoding: how the numbers of one matrix are kept, and what its held parameters are called.

Several devices may share a matrix: each holds the same number of its rows, or of its columns.

Read next: `matrix.py`, which chooses one.
"""

from typing import NamedTuple

import numpy as np

from rtp_jax.quant.schemes import Scheme
from rtp_jax.weights.matrix_format import MatrixFormat

# How the paths of held parameters end.
VALUES, SCALES, ZEROS, ORDER = ".values", ".scales", ".zeros", ".order"


class Encoding(NamedTuple):
    """How the numbers of one matrix are kept."""

    scheme: Scheme
    layout: str
    outer: int  # rows that one device holds
    inner: int  # columns that one device holds
    dtype: np.dtype  # of the numbers as they are stored
    source: MatrixFormat | None = None  # how the checkpoint quantized them; None: it did not
    parts: tuple[int, int] = (1, 1)  # devices that share the rows, and the columns

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.outer * self.parts[0], self.inner * self.parts[1]
