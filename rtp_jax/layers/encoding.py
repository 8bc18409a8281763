"""Encoding: how the numbers of one matrix are kept, and what its held parameters are called.

Read next: `matrix.py`, which chooses one.
"""

from typing import NamedTuple

import numpy as np

from rtp_jax.quant.schemes import Scheme

VALUES, SCALES = ".values", ".scales"  # how the paths of held parameters end


class Encoding(NamedTuple):
    """How the numbers of one matrix are kept."""

    scheme: Scheme
    layout: str
    outer: int
    inner: int
    dtype: np.dtype  # of the numbers as they are stored
