"""Gathering: matrices that are stored as several tensors wait until the last of these has come.

Read next: `placing.py`, which encodes them.
"""

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

import numpy as np

from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.parts import Part
from rtp_jax.weights.plan import Placement, Plan

Row = tuple[int, ...]  # of a stack


class Stored(NamedTuple):
    """One of the tensors of a matrix, and where it came from."""

    numbers: np.ndarray
    part: Part


class Gathering:
    """Tensors of matrices of which others have not come; several threads bring them."""

    def __init__(self, plan: Plan, encoders: Mapping[str, Encoder]):
        self.lock = Lock()
        self.missing = Counter(
            (tuple(encoders[placement.parameter].parts), placement.row)
            for placements in plan.placements_of.values()
            for placement in placements
            if placement.parameter in encoders
        )
        self.come: dict[tuple[tuple[str, ...], Row], dict[str, Stored]] = {}

    def add(self, encoder: Encoder, placement: Placement, stored: Stored) -> dict[str, Stored]:
        """Keep a tensor; return all of its matrix by name when they are there, else none.

        An optional tensor that the checkpoint lacks is not waited for.
        """
        key, name = (tuple(encoder.parts), placement.row), encoder.parts[placement.parameter]
        with self.lock:
            self.come.setdefault(key, {})[name] = stored
            self.missing[key] -= 1
            return {} if self.missing[key] else self.come.pop(key)
