"""Encoder: turns what is loaded of a matrix into the arrays that a model holds instead.

A matrix of a layer is encoded as soon as its bytes are there, and its source is dropped: the model
is never held in two encodings.  Who writes an encoder knows the encoding; the loader only calls it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np


class Encoder(NamedTuple):
    """How one matrix, stored as one or more parameters, becomes one or more held ones."""

    parts: Mapping[str, str]  # path of each stored parameter to what `encode` calls it
    held: Mapping[str, jax.ShapeDtypeStruct]  # path to shape, with the stack's leading axes
    # What is loaded of one row of the stack, by its names, and where it goes.  May raise WrongPart.
    encode: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]


class WrongPart(Exception):
    """What a tensor holds contradicts what the checkpoint says of it."""

    def __init__(self, part: str, reason: str):
        super().__init__(f"{part}: {reason}")
        self.part, self.reason = part, reason
