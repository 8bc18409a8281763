"""Encoding: how the numbers of one matrix are kept, and what its held parameters are called.

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
    outer: int
    inner: int
    dtype: np.dtype  # of the numbers as they are stored
    source: MatrixFormat | None = None  # how the checkpoint quantized them; None: it did not
