"""What is in a checkpoint that was given, and how are its tensors read?  Front to back, in blocks.

A checkpoint is a folder with safetensors (one file, or several and an index) or one that Orbax
wrote.  Opening it reads headers only.  What its manifest promises, if it has one, is compared with
what is read.

Read next: `orbax_source.py` for Orbax, `job.py` for what is done with the tensors.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools.manifest import Manifest, read_manifest
from checkpoints_tools.orbax_source import read_orbax
from checkpoints_tools.stored import Place, StoredTensor
from rtp_jax.config import hub_cache
from rtp_jax.errors import CheckpointError
from rtp_jax.weights.checkpoint import has_tensors, read_checkpoint
from rtp_jax.weights.files import inside, read_json
from rtp_jax.weights.locate import find_model
from rtp_jax.weights.orbax import is_orbax

SAFETENSORS, ORBAX = "safetensors", "orbax"
CONFIG = "config.json"


@dataclass(frozen=True)
class Source:
    """A checkpoint: its tensors in the order in which they lie, and its config if it has one."""

    kind: str
    folder: Path
    tensors: tuple[StoredTensor, ...]
    identity: tuple[tuple[str, int, int], ...]  # of each file: name, size, time of the last change
    config: dict[str, Any] | None
    manifest: Manifest | None
    not_arrays: tuple[str, ...] = ()  # what an Orbax tree holds besides arrays

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def by_name(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def read(self, tensor: StoredTensor) -> Iterator[np.ndarray]:
        """Yield the bytes of a tensor in pieces of any size, and compare them with the manifest.

        Raises:
          CheckpointError: RTPJ-3609, what was read is not what the manifest promises.
        """
        promised = self.manifest.tensors.get(tensor.name) if self.manifest else None
        digest = hashlib.sha256()
        for piece in tensor.place.read():
            if promised is not None:
                digest.update(piece)
            yield piece
        if promised is not None and promised.sha256 != digest.hexdigest():
            raise mismatch(f"{self.folder}, tensor {tensor.name}", promised.sha256, digest)


def open_source(name: str) -> Source:
    """Open a folder with safetensors or an Orbax checkpoint, a built-in model, or one by its id."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder) and is_orbax(folder) and not has_tensors(folder):
        return _orbax(folder)
    if not (os.path.isdir(folder) and has_tensors(folder)):
        folder = find_model(name, hub_cache=hub_cache())
    return safetensors_source(folder)


def safetensors_source(folder: Path, name: str = "model.safetensors") -> Source:
    """Read the headers of a checkpoint in safetensors; `name` is that of its only or first file."""
    checkpoint = read_checkpoint(folder, name)
    tensors = [
        StoredTensor(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            Place(file.path, file.data_start + tensor.begin, tensor.end - tensor.begin),
        )
        for file in checkpoint.files
        for tensor in file.tensors
    ]
    identity = tuple((file.path.name, *file.identity[:2]) for file in checkpoint.files)
    return Source(
        SAFETENSORS, folder, tuple(tensors), identity, _config(folder), read_manifest(folder)
    )


def _orbax(folder: Path) -> Source:
    found = read_orbax(folder)
    return Source(
        ORBAX,
        folder,
        found.tensors,
        found.identity,
        _config(folder),
        read_manifest(folder),
        found.not_arrays,
    )


def _config(folder: Path) -> dict[str, Any] | None:
    if not os.path.lexists(folder / CONFIG):
        return None
    return read_json(inside(folder, CONFIG))


def mismatch(what: str, promised: str, found: Any) -> CheckpointError:
    """Say that bytes are not those that a manifest promises."""
    return CheckpointError(
        f"RTPJ-3609 HASH_MISMATCH: {what} has sha256 {found.hexdigest()} and the manifest promises"
        f" {promised}: the bytes have changed since it was written. Copy or convert it again."
    )


def regroup(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Turn pieces of any size into pieces of `size` bytes; only the last one may be shorter."""
    waiting: list[np.ndarray] = []
    held = 0
    for piece in pieces:
        while piece.size:
            part, piece = piece[: size - held], piece[size - held :]
            waiting.append(part)
            held += part.size
            if held == size:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting, held = [], 0
    if held:
        yield np.concatenate(waiting)


def in_rows(
    pieces: Iterable[np.ndarray], dtype: np.dtype, inner: int, *, block_bytes: int
) -> Iterator[np.ndarray]:
    """Turn the bytes of a matrix into blocks [rows, inner] of about `block_bytes`."""
    row = inner * dtype.itemsize
    for block in regroup(pieces, max(1, block_bytes // row) * row):
        yield block.view(dtype).reshape(-1, inner)
