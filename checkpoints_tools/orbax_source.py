"""How are Orbax checkpoints read that are not plain?  By TensorStore, block by block.

An array that lies in one uncompressed file is read from there; what is compressed, in many chunks
or in Orbax's key-value store goes through TensorStore.

Read next: `rtp_jax/weights/orbax.py` for what is in such a folder, `orbax_layout.py` for what we
write.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from checkpoints_tools.stored import BLOCK, Place, StoredTensor
from rtp_jax.weights.orbax import ARRAYS, STORE, check, invalid, plain_header, read_tree

MAX_ENTRIES = 1_000_000  # files and folders of a checkpoint
MAX_PIECE = 4 << 30  # bytes of a row, or of a chunk, which is in memory as a whole
# What TensorStore raises about data that it cannot read.
REFUSALS = (ValueError, TypeError, KeyError, RuntimeError, OSError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class OrbaxTree:
    """The arrays of a checkpoint, and the names of what else is in its tree."""

    tensors: tuple[StoredTensor, ...]
    identity: tuple[tuple[str, int, int], ...]
    not_arrays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chunks:
    """An array that TensorStore reads."""

    folder: Path
    name: str
    array: Any  # tensorstore.TensorStore, which has no types

    def read(self) -> Iterator[np.ndarray]:
        """Yield the array in blocks of whole rows, and of whole rows of chunks."""
        shape = tuple(self.array.shape)
        if not shape:
            yield self._part(...)
            return
        row = math.prod(shape[1:]) * self.array.dtype.numpy_dtype.itemsize
        chunk = max(1, self.array.chunk_layout.read_chunk.shape[0])
        rows = max(1, BLOCK // max(1, row * chunk)) * chunk
        for start in range(0, shape[0], rows):
            yield self._part(slice(start, min(start + rows, shape[0])))

    def _part(self, index: Any) -> np.ndarray:
        try:
            part = self.array[index].read(order="C").result()
        except REFUSALS as reason:
            raise invalid(self.folder, f"{self.name} cannot be read: {_short(reason)}") from None
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def read_orbax(folder: Path) -> OrbaxTree:
    """Read the tree of a checkpoint, and the description of each array."""
    identity = _walk(folder)
    kinds, driver = read_tree(folder)
    names = [name for name, kind in kinds.items() if kind in ARRAYS]
    context = tensorstore.Context()  # of this checkpoint: it may be another one on the next call
    tensors = [_tensor(folder, name, driver, context) for name in names]
    return OrbaxTree(tuple(tensors), identity, tuple(n for n in kinds if n not in set(names)))


def _walk(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """List all files; a link, which Orbax never makes, could lead anywhere."""
    found = []
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            full = os.path.join(path, name)
            if os.path.islink(full):
                raise invalid(folder, f"{os.path.relpath(full, folder)[:200]!r} is a link")
        for name in files:
            full = os.path.join(path, name)
            status = os.lstat(full)
            found.append((os.path.relpath(full, folder), status.st_size, status.st_mtime_ns))
        if len(found) > MAX_ENTRIES:
            raise invalid(folder, f"it has more than {MAX_ENTRIES} files")
    return tuple(sorted(found))


def _tensor(folder: Path, name: str, driver: str, context: Any) -> StoredTensor:
    in_store = os.path.isfile(folder / STORE)
    if not in_store and driver == "zarr" and (header := plain_header(folder, name)):
        (tensor,) = header.tensors
        return StoredTensor(name, tensor.dtype, tensor.shape, Place(header.path, 0, tensor.end))
    store: dict[str, Any] = {"driver": "file", "path": f"{folder.absolute()}/{name}/"}
    if in_store:
        base = f"file://{folder.absolute()}/"
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    try:
        array = tensorstore.open(
            {"driver": driver, "kvstore": store}, open=True, read=True, context=context
        ).result()
        dtype, shape = array.dtype.numpy_dtype, tuple(array.shape)
        chunk = [size or 1 for size in array.chunk_layout.read_chunk.shape or ()]
    except REFUSALS as reason:
        raise invalid(folder, f"{name} cannot be opened: {_short(reason)}") from None
    check(folder, name, dtype, shape)
    if max(math.prod(chunk), math.prod(shape[1:])) * dtype.itemsize > MAX_PIECE:
        raise invalid(folder, f"a row or a chunk of {name} has more than {MAX_PIECE} bytes")
    return StoredTensor(name, np.dtype(dtype), shape, Chunks(folder, name, array))


def _short(reason: Exception) -> str:
    """The first words of a message of TensorStore, which are long and repeat its input."""
    return str(reason).split(" [")[0].splitlines()[0][:300]
