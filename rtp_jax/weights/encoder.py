"""Encoder: turns the numbers of a loaded matrix into the arrays that a model holds instead.

A matrix of a layer is encoded as soon as its bytes are there, and its source is dropped: the model
is never held in two encodings.  Who writes an encoder knows the encoding; the loader only calls it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np


class Encoder(NamedTuple):
    """How one stored parameter becomes one or more held ones."""

    held: Mapping[str, jax.ShapeDtypeStruct]  # path to shape, with the stack's leading axes
    encode: Callable[[np.ndarray, Mapping[str, np.ndarray]], None]  # a row, and where it goes
