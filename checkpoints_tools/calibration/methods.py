"""What GPTQ and AWQ do with each half of a layer.

A method is told twice what matrices are given: the input of the maps, then that of the map back,
by which time the maps that can be are quantized.

Read next: `layers.py`, which calls it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from checkpoints_tools.calibration import awq, gptq
from checkpoints_tools.calibration.grid import Encoded, plainly
from checkpoints_tools.calibration.halves import Half, Inputs, Layer


class Method(Protocol):
    """How a half is quantized."""

    @property
    def wants_gram(self) -> bool:
        """Whether it needs X' X of the inputs."""
        ...

    def enter(self, half: Half, layer: Layer, inputs: Inputs) -> None:
        """Quantize maps, whose inputs these are."""
        ...

    def leave(self, half: Half, layer: Layer, inputs: Inputs, given: Inputs) -> None:
        """Quantize the rest; `given` is the input of the map back."""
        ...


@dataclass(frozen=True)
class Gptq:
    """Every matrix for itself."""

    by_use: bool
    wants_gram: bool = True

    def enter(self, half: Half, layer: Layer, inputs: Inputs) -> None:
        """Quantize all maps together: they have one input."""
        self._solve(layer, layer.those_of(half.maps), inputs)

    def leave(self, half: Half, layer: Layer, inputs: Inputs, given: Inputs) -> None:
        """Quantize the map back."""
        self._solve(layer, layer.those_of([half.back]), given)

    def _solve(self, layer: Layer, modules: list[str], inputs: Inputs) -> None:
        if not modules:
            return
        assert inputs.gram is not None
        rows = [len(layer.matrix(module)) for module in modules]
        together = np.concatenate([layer.matrix(module) for module in modules])
        found = gptq.solve(together, inputs.gram, layer.kind, by_use=self.by_use)
        start = 0
        for module, count in zip(modules, rows, strict=True):
            here = slice(start, start + count)
            zeros = None if found.zeros is None else found.zeros[here]
            layer.put(module, Encoded(found.values[here], found.scales[here], zeros), inputs.sample)
            start += count


@dataclass(frozen=True)
class Awq:
    """Factors between norm and maps, and between the carrier and the map back."""

    wants_gram: bool = False

    def enter(self, half: Half, layer: Layer, inputs: Inputs) -> None:
        """Fold factors into the norm, and quantize the maps but for the carrier."""
        if layer.wanted.issuperset(half.maps):
            fold_into_norm(half, layer, inputs)
        for module in layer.those_of(half.maps):
            if module != half.carrier:
                # Queries and keys meet in a product, of whose error their outputs say little.
                self._put(layer, module, inputs, clip=half.name != "attention")

    def leave(self, half: Half, layer: Layer, inputs: Inputs, given: Inputs) -> None:
        """Fold factors into the carrier, and quantize it and the map back."""
        if layer.wanted.issuperset((half.carrier, half.back)):
            fold_into_carrier(half, layer, given)
        for module, source in ((half.carrier, inputs), (half.back, given)):
            if module in layer.wanted:
                self._put(layer, module, source, clip=True)

    def _put(self, layer: Layer, module: str, inputs: Inputs, *, clip: bool) -> None:
        matrix, sample = layer.matrix(module), inputs.sample
        found = awq.clipped(matrix, sample, layer.kind) if clip else plainly(matrix, layer.kind)
        layer.put(module, found, sample)


def fold_into_norm(half: Half, layer: Layer, inputs: Inputs) -> None:
    """Divide the norm by factors and multiply the columns of the maps by them."""
    matrices = [layer.matrix(module) for module in half.maps]
    factors = awq.search(matrices, inputs.sample, inputs.mean, layer.kind)
    norm, factors = divided(layer.numbers[half.norm], factors, layer.stored[half.norm])
    layer.numbers[half.norm] = norm
    for module in half.maps:
        layer.numbers[f"{module}.kernel"] = layer.matrix(module) * factors
    inputs.divide(factors)


def fold_into_carrier(half: Half, layer: Layer, given: Inputs) -> None:
    """Divide the rows of the carrier by factors and multiply the columns of the map back."""
    spread = layer.spread[half.name]
    magnitude = np.bincount(spread, given.mean) / np.bincount(spread)
    matrices = [layer.matrix(half.back)]
    factors = awq.search(matrices, given.sample, magnitude, layer.kind, spread).astype(np.float32)
    kernel, bias = f"{half.carrier}.kernel", f"{half.carrier}.bias"
    layer.numbers[kernel] = layer.numbers[kernel] / factors[:, None]
    if bias in layer.numbers:
        smaller = (layer.numbers[bias] / factors).astype(layer.stored[bias])
        layer.numbers[bias] = smaller.astype(np.float32)
    layer.numbers[f"{half.back}.kernel"] = layer.matrix(half.back) * factors[spread]
    given.divide(factors[spread])


def divided(
    norm: np.ndarray, factors: np.ndarray, stored: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a norm by factors, and give those by which it is divided once it is stored.

    A feature whose norm is 0, or would not be a number, keeps it.
    """
    with np.errstate(over="ignore"):
        smaller = (norm / factors).astype(stored).astype(np.float32)
    kept = (smaller == 0) | ~np.isfinite(smaller)
    smaller = np.where(kept, norm, smaller)
    real = np.divide(norm, smaller, out=np.ones_like(norm), where=~kept)
    return smaller, real
