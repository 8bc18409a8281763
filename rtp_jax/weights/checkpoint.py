"""Which files does a checkpoint have, and which tensors are in them?

Either one file, `model.safetensors`, or several and an index, `model.safetensors.index.json`, that
says which tensor is in which.  The headers are the truth: what the index says is checked.  A folder
that Orbax wrote has a file for each tensor (`orbax.py`).

Read next: `safetensors.py` for one file, `loader.py` for reading the tensors.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import inside, read_json
from rtp_jax.weights.orbax import is_orbax, read_plain
from rtp_jax.weights.safetensors import MAX_HEADER_BYTES, Header, Tensor, read_header
from rtp_jax.weights.table import some_of


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The headers of all files of a model, in the order in which they are read."""

    folder: Path
    files: tuple[Header, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {tensor.name: tensor for file in self.files for tensor in file.tensors}


def has_tensors(folder: Path, name: str = "model.safetensors") -> bool:
    """Whether a folder holds a checkpoint in safetensors, of one file or of several."""
    return os.path.isfile(folder / name) or os.path.isfile(folder / f"{name}.index.json")


def read_checkpoint(folder: Path, name: str = "model.safetensors") -> Checkpoint:
    """Read the headers of a checkpoint, and check that they agree with each other."""
    if is_orbax(folder) and not has_tensors(folder, name):
        return Checkpoint(folder, read_plain(folder))
    index = folder / f"{name}.index.json"
    if os.path.isfile(folder / name) or not os.path.isfile(index):
        return Checkpoint(folder, (read_header(inside(folder, name)),))
    inside(folder, index.name)
    file_of = _file_of(index, read_json(index, MAX_HEADER_BYTES))
    names = sorted(set(file_of.values()))
    paths = {file: inside(folder, file) for file in names}
    if missing := [file for file in names if not os.path.isfile(paths[file])]:
        raise CheckpointError(
            f"RTPJ-3015 SHARDS_MISSING: {index} names {len(names)} files, {len(missing)} are not "
            f"there: {some_of(missing)}. Complete the download of the model."
        )
    checkpoint = Checkpoint(folder, tuple(read_header(paths[file]) for file in names))
    _check_index(index, file_of, dict(zip(names, checkpoint.files, strict=True)))
    return checkpoint


def _file_of(index: Path, content: dict[str, Any]) -> dict[str, str]:
    file_of = content.get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(v, str) for v in file_of.values()):
        raise _wrong(index, "its weight_map does not map tensors to files")
    if not file_of or not all(name.isprintable() for name in file_of):
        raise _wrong(index, "its weight_map is empty, or what it maps are not names")
    return file_of


def _check_index(index: Path, file_of: dict[str, str], headers: dict[str, Header]) -> None:
    """Refuse a tensor that is not where the index says, or that is in two files."""
    found = [(tensor.name, file) for file, header in headers.items() for tensor in header.tensors]
    where = dict(found)
    if len(where) < len(found):
        twice = sorted({name for name, file in found if where[name] != file})
        raise _wrong(index, f"{len(twice)} tensors are in two files: {some_of(twice)}")
    lost = [f"{name} in {file}" for name, file in file_of.items() if where.get(name) != file]
    if lost:
        raise _wrong(index, f"{len(lost)} tensors are not where it says: {some_of(lost)}")


def _wrong(index: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3016 INDEX_WRONG: {index}: {reason[:4000]}. "
        "Download the index and the files it names again, from one revision."
    )
