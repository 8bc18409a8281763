"""What is known of a layer while it is quantized: its two halves, its numbers, what they are given.

Read next: `methods.py`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from checkpoints_tools.calibration.awq import output_error
from checkpoints_tools.calibration.grid import Encoded, Kind, numbers_of

SAMPLE = 1024  # inputs that are kept to measure errors of outputs


class Half(NamedTuple):
    """The names of what is in one half of a layer."""

    name: str
    norm: str
    maps: tuple[str, ...]
    carrier: str  # the map whose rows reach the map back only multiplied by something
    back: str


HALVES = (
    Half(
        "attention",
        "attention_norm.scale",
        ("attention.query", "attention.key", "attention.value"),
        "attention.value",
        "attention.output",
    ),
    Half("mlp", "mlp_norm.scale", ("mlp.gate", "mlp.up"), "mlp.up", "mlp.down"),
)


@dataclass
class Inputs:
    """What is remembered of the inputs of a matrix."""

    wants_gram: bool
    stride: int  # one of so many is kept
    count: int = 0
    gram: np.ndarray | None = None  # X' X, float64
    magnitude: np.ndarray = field(default_factory=lambda: np.zeros(1))  # sum of |x|, float64
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, x: np.ndarray) -> None:
        """Take in some inputs [tokens, inner]."""
        if self.wants_gram and self.gram is None:
            self.gram = np.zeros((x.shape[1],) * 2)
        self.kept.append(x[-self.count % self.stride :: self.stride].copy())
        self.count += len(x)
        self.magnitude = self.magnitude + np.abs(x).sum(0, dtype=np.float64)
        if self.gram is not None:
            self.gram += x.T @ x

    def divide(self, factors: np.ndarray) -> None:
        """Say that inputs are divided by factors [inner] from now on."""
        assert self.gram is None, "only what AWQ looks at is divided"
        self.kept = [each / factors for each in self.kept]
        self.magnitude = self.magnitude / factors

    @property
    def sample(self) -> np.ndarray:
        """What was kept [tokens, inner]."""
        return np.concatenate(self.kept)

    @property
    def mean(self) -> np.ndarray:
        """The mean of |x|."""
        return self.magnitude / self.count


@dataclass
class Layer:
    """One layer while it is quantized."""

    number: int
    numbers: dict[str, np.ndarray]  # float32, by path; matrices become what they decode to
    wanted: frozenset[str]  # modules to quantize
    kind: Kind
    # For each half, the row of the carrier from which each input of the map back comes.
    spread: Mapping[str, np.ndarray]
    stored: Mapping[str, np.dtype]  # in which dtype each tensor is stored, by path
    encoded: dict[str, Encoded] = field(default_factory=dict)  # by module
    squares_off: float = 0.0  # of outputs, over all matrices
    squares: float = 0.0

    def matrix(self, module: str) -> np.ndarray:
        """The numbers of a matrix as they are now."""
        return self.numbers[f"{module}.kernel"]

    def those_of(self, modules: Iterable[str]) -> list[str]:
        """Those that are to be quantized."""
        return [module for module in modules if module in self.wanted]

    @property
    def error(self) -> float:
        """How far outputs of its matrices are off, as a share: a root mean square."""
        return math.sqrt(self.squares_off / self.squares) if self.squares else 0.0

    def put(self, module: str, matrix: Encoded, sample: np.ndarray) -> None:
        """Take a matrix in its new form, and measure what it does to some inputs."""
        before, after = self.matrix(module), numbers_of(matrix)
        self.squares_off += output_error(sample, after - before)
        self.squares += output_error(sample, before)
        self.numbers[f"{module}.kernel"], self.encoded[module] = after, matrix
