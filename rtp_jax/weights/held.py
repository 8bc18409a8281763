"""Held: the arrays of a model on their way, one host buffer for each part that devices hold.

Devices that hold the same part of a parameter share its buffer.  Buffers begin on a 64-byte
boundary, because there jax takes them over without a copy on a CPU.  When every byte of a parameter
is in, its buffers leave.

Read next: `spread.py` for who holds what, `loader.py` for who writes here.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from rtp_jax.weights.convert import Allocate
from rtp_jax.weights.shards import Box, overlap, shape_of, within


class Cut(NamedTuple):
    """Where something goes: a part of a buffer, and which part of what is written goes there."""

    target: np.ndarray
    source: tuple[slice, ...]


class Held:
    """Buffers of parameters that are not complete."""

    def __init__(
        self,
        described: Mapping[str, jax.ShapeDtypeStruct],
        boxes: Mapping[str, list[Box]],
        complete: Callable[[str, dict[Box, np.ndarray]], None],
        allocate: Allocate,
    ):
        self.described, self.complete, self.allocate = described, complete, allocate
        self.boxes = {path: list(dict.fromkeys(several)) for path, several in boxes.items()}
        self.buffers: dict[str, dict[Box, np.ndarray]] = {}
        self.missing = {
            path: sum(int(np.prod(shape_of(box), dtype=np.int64)) for box in several)
            for path, several in self.boxes.items()
        }  # numbers that have not come
        for path, count in self.missing.items():
            if not count:
                self.prepare(path)
                self.complete(path, self.buffers.pop(path))

    def prepare(self, path: str) -> None:
        """Have the buffers of a parameter ready; memory is taken when it is written."""
        if path not in self.buffers:
            dtype = np.dtype(self.described[path].dtype)
            self.buffers[path] = {b: self.allocate(shape_of(b), dtype) for b in self.boxes[path]}

    def cuts(self, path: str, region: Box) -> list[Cut]:
        """Say where the numbers of a region of a parameter go; its buffers are ready."""
        return [
            Cut(buffer[(*within(shared, box), ...)], within(shared, region))
            for box, buffer in self.buffers.get(path, {}).items()
            if (shared := overlap(region, box)) is not None
        ]

    def has_come(self, path: str, count: int) -> None:
        """Count numbers that were written; the last of them completes the parameter."""
        self.missing[path] -= count
        assert self.missing[path] >= 0, f"{path} was written twice"
        if count and not self.missing[path]:
            self.complete(path, self.buffers.pop(path))
