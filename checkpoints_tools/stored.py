"""A tensor of a checkpoint, and where its bytes are: a range of a file, or chunks of an array.

Read next: `source.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import open_regular, unreadable
from rtp_jax.weights.safetensors import identity

BLOCK = 16 << 20  # bytes that are read at once


class Readable(Protocol):
    """Anything that yields the bytes of a tensor, in C order, in pieces of any size."""

    def read(self) -> Iterator[np.ndarray]:
        """Yield all bytes, front to back."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor: what it is, and where."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    place: Readable

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Place:
    """A range of bytes of a file."""

    path: Path
    start: int
    count: int

    def read(self) -> Iterator[np.ndarray]:
        """Yield the bytes in blocks; a file that changes meanwhile is an error."""
        with open_regular(self.path) as file:
            before = identity(file)
            file.seek(self.start)
            left = self.count
            while left:
                block = np.empty(min(left, BLOCK), np.uint8)
                rest = block.data
                while rest:
                    try:
                        count = file.readinto(rest)
                    except OSError as reason:
                        raise unreadable(self.path, reason.strerror or str(reason)) from reason
                    if not count:
                        raise _changed(self.path, f"it ends {len(rest)} bytes early")
                    rest = rest[count:]
                left -= block.size
                yield block
            if identity(file) != before:
                raise _changed(self.path, "its size or time is another")


def _changed(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3100 FILE_CHANGED: {path} changed while it was read: {reason}. "
        "Let what writes it finish, then try again."
    )
