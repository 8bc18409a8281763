"""What is in an Orbax checkpoint?  A tree of arrays; a tensor's name is its path, joined by dots.

Orbax stores each array as a Zarr array, either in a folder of its own or, as it does by default,
inside of one key-value store (OCDBT) for all of them.  An array that lies in one uncompressed file
is read from there like a tensor of safetensors; any other is read by TensorStore, block by block.

    _METADATA             JSON: path of each array in the tree, and what kind of value it is
    <name>/.zarray, 0.0   Zarr 2: description and chunks;  <name>/zarr.json, c/0/0  in Zarr 3
    manifest.ocdbt, d/    all arrays in one key-value store

Source: orbax-checkpoint 0.12.8, whose checkpoints the tests read and which reads ours.
Read next: `orbax_layout.py` for what we write.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from checkpoints_tools.orbax_layout import METADATA, ZARR_DTYPES, chunk_name
from checkpoints_tools.stored import BLOCK, Place, StoredTensor
from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import read_json
from rtp_jax.weights.safetensors import DTYPES, MAX_AXES, MAX_HEADER_BYTES, MAX_NAME

OCDBT = "manifest.ocdbt"
ARRAYS = ("jax.Array", "np.ndarray", "scalar")
MAX_ENTRIES = 1_000_000  # files and folders of a checkpoint
MAX_PIECE = 4 << 30  # bytes of a row, or of a chunk, which is in memory as a whole
DTYPE_OF = {text: dtype for dtype, text in ZARR_DTYPES.items()}
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


def is_orbax(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that Orbax wrote."""
    return os.path.isfile(folder / METADATA)


def read_orbax(folder: Path) -> OrbaxTree:
    """Read the tree of a checkpoint, and the description of each array."""
    identity = _walk(folder)
    content = read_json(folder / METADATA, MAX_HEADER_BYTES)
    tree = content.get("tree_metadata")
    if not isinstance(tree, dict):
        raise invalid(folder, f"{METADATA} has no tree_metadata")
    kinds = dict(_leaf(folder, entry) for entry in tree.values())
    if len(kinds) != len(tree):
        raise invalid(folder, "two arrays have one name")
    names = [name for name, kind in kinds.items() if kind in ARRAYS]
    driver = "zarr3" if content.get("use_zarr3") is True else "zarr"
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


def _leaf(folder: Path, entry: Any) -> tuple[str, str]:
    """Give name and kind of one entry of the tree."""
    match entry:
        case {"key_metadata": list(keys), "value_metadata": {"value_type": str(kind)}}:
            parts = [str(key["key"]) for key in keys if isinstance(key, dict) and "key" in key]
        case _:
            raise invalid(folder, "an entry of its tree lacks key_metadata or value_metadata")
    name = ".".join(parts)
    if len(parts) != len(keys) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise invalid(folder, f"an array is named {name[:200]!r}")
    if "/" in name or "\\" in name or name.startswith("."):
        raise invalid(folder, f"an array is named {name[:200]!r}, which is no name of a folder")
    return name, kind


def _tensor(folder: Path, name: str, driver: str, context: Any) -> StoredTensor:
    in_store = os.path.isfile(folder / OCDBT)
    if not in_store and driver == "zarr" and (plain := _plain(folder, name)):
        return plain
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
    _check(folder, name, dtype, shape)
    if max(math.prod(chunk), math.prod(shape[1:])) * dtype.itemsize > MAX_PIECE:
        raise invalid(folder, f"a row or a chunk of {name} has more than {MAX_PIECE} bytes")
    return StoredTensor(name, np.dtype(dtype), shape, Chunks(folder, name, array))


def _plain(folder: Path, name: str) -> StoredTensor | None:
    """Describe an array that is one uncompressed file; None if it is stored in another way."""
    path = folder / name / ".zarray"
    if not os.path.isfile(path):
        raise invalid(folder, f"{name} has no {path.name}")
    found = read_json(path)
    shape, dtype = found.get("shape"), found.get("dtype")
    counts = isinstance(shape, list) and all(type(n) is int and 0 < n <= 1 << 48 for n in shape)
    plain = found.get("compressor", 0) is None and not found.get("filters")
    plain = plain and found.get("zarr_format") == 2 and found.get("order") == "C"
    if not counts or not plain or shape != found.get("chunks") or dtype not in DTYPE_OF:
        return None
    assert isinstance(shape, list)
    _check(folder, name, DTYPE_OF[dtype], tuple(shape))
    needed = math.prod(shape) * DTYPE_OF[dtype].itemsize
    chunk = folder / name / chunk_name(tuple(shape))
    if not os.path.isfile(chunk) or os.path.getsize(chunk) != needed:
        has = f"{os.path.getsize(chunk)} bytes" if os.path.isfile(chunk) else "no such file"
        raise invalid(folder, f"{name}/{chunk.name} needs {needed} bytes, there is {has}")
    return StoredTensor(name, DTYPE_OF[dtype], tuple(shape), Place(chunk, 0, needed))


def _check(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    if dtype not in DTYPES.values():
        raise invalid(folder, f"{name} has dtype {dtype}, which safetensors does not have")
    if len(shape) > MAX_AXES or math.prod(shape) > 1 << 48:
        raise invalid(folder, f"{name} has shape {str(list(shape))[:200]}")


def _short(reason: Exception) -> str:
    """The first words of a message of TensorStore, which are long and repeat its input."""
    return str(reason).split(" [")[0].splitlines()[0][:300]


def invalid(folder: Path, reason: str) -> CheckpointError:
    """Say what is wrong with an Orbax checkpoint."""
    return CheckpointError(
        f"RTPJ-3608 ORBAX_INVALID: {folder}: {reason}. Copy the checkpoint again, or give the "
        f"folder that holds {METADATA}."
    )
