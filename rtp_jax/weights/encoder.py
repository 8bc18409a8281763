"""Encoder: turns the numbers of a loaded matrix into the arrays that a model holds instead.

Rows of a layer's matrix are encoded as soon as their bytes are there, and their source is dropped:
the model is never held in two encodings.  Who writes an encoder knows the encoding; the loader only
calls it, in several threads.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np


class Encoder(NamedTuple):
    """How one stored parameter becomes one or more held ones.

    Where blocks of rows are encoded each by itself, `encode` is called with whole blocks at a time
    and with the part of each held array that is theirs: such an array has a row for each row of the
    matrix, or one for each block.
    """

    held: Mapping[str, jax.ShapeDtypeStruct]  # path to shape, with the stack's leading axes
    encode: Callable[[np.ndarray, Mapping[str, np.ndarray]], None]  # a matrix, and where it goes
    block_rows: int | None = None  # None: the matrix is encoded as a whole
