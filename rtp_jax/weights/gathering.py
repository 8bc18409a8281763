"""Gathering: matrices that are stored as several tensors wait until the last of these has come.

One process reads all tensors of a matrix, so that it can encode it.  Which of its threads brings
the last tensor is chance; what other processes need of the matrix therefore waits, and is sent with
the tensor that is last in the order of reading, as everybody expects.

Read next: `placing.py`, which encodes them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.parts import Part, Run
from rtp_jax.weights.plan import Placement, Plan

Matrix = tuple[tuple[str, ...], tuple[int, ...]]  # the paths it is stored under, its row of a stack
Outgoing = dict[int, list[np.ndarray]]  # bytes for each other process


class Stored(NamedTuple):
    """One of the tensors of a matrix, and where it came from."""

    numbers: np.ndarray
    part: Part


def matrices(plan: Plan, encoders: Mapping[str, Encoder]) -> dict[str, Matrix]:
    """Say to which matrix each tensor belongs, of those that are stored as several tensors."""
    found = {}
    for name, placements in plan.placements_of.items():
        for placement in placements:
            encoder = encoders.get(placement.parameter)
            if encoder is not None and len(encoder.parts) > 1:
                assert len(placements) == 1, f"{name} is a part of a matrix, and something else"
                found[name] = tuple(encoder.parts), placement.row
    return found


class Gathering:
    """Tensors of matrices of which others have not come; several threads bring them."""

    def __init__(self, matrix_of: Mapping[str, Matrix], shares: Sequence[Sequence[Run]]):
        """Prepare for tensors of matrices, which processes read in the order of their shares."""
        self.lock = Lock()
        self.matrix_of = matrix_of
        self.missing = Counter(matrix_of.values())
        self.come: dict[Matrix, dict[str, Stored]] = {}
        self.outgoing: dict[Matrix, Outgoing] = {}
        names = (tensor.name for share in shares for run in share for tensor in run.tensors)
        last_of = {matrix_of[name]: name for name in names if name in matrix_of}
        self.last = frozenset(last_of.values())

    def sends(self, part: Part) -> bool:
        """Whether bytes go to other processes when this part has been placed."""
        return part.tensor.name not in self.matrix_of or part.tensor.name in self.last

    def add(self, encoder: Encoder, placement: Placement, stored: Stored) -> dict[str, Stored]:
        """Keep a tensor; return all of its matrix by name when they are there, else none.

        An optional tensor that the checkpoint lacks is not waited for.
        """
        matrix, name = self.matrix_of[stored.part.tensor.name], encoder.parts[placement.parameter]
        with self.lock:
            self.come.setdefault(matrix, {})[name] = stored
            self.missing[matrix] -= 1
            return {} if self.missing[matrix] else self.come.pop(matrix)

    def keep(self, part: Part, outgoing: Outgoing) -> None:
        """Keep what other processes need of a matrix that this part has completed."""
        with self.lock:
            self.outgoing[self.matrix_of[part.tensor.name]] = outgoing

    def take(self, part: Part) -> Outgoing:
        """Give what goes with the last part of a matrix, when all of its parts are placed."""
        with self.lock:
            return self.outgoing.pop(self.matrix_of[part.tensor.name])
