"""The manifest: what each tensor and each file of an output is, by sha256.

`checkpoint_manifest.json` lies beside the tensors.  It names no time and no place, so that two
conversions of one source give the same bytes.  Whoever reads the folder later compares.

Read next: `job.py`, which writes it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import inside, read_json
from rtp_jax.weights.safetensors import MAX_HEADER_BYTES

NAME = "checkpoint_manifest.json"
FORMAT = "rtp-jax-ckpt manifest 1"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of an output."""

    dtype: str
    shape: list[int]
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an output."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors and files by name."""

    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, FileEntry]

    def text(self) -> bytes:
        """Write it as JSON, in a stable order."""
        content = {
            "format": FORMAT,
            "tensors": {name: asdict(self.tensors[name]) for name in sorted(self.tensors)},
            "files": {name: asdict(self.files[name]) for name in sorted(self.files)},
        }
        return json.dumps(content, indent=1).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder, if there is one."""
    if not os.path.lexists(folder / NAME):
        return None
    content = read_json(inside(folder, NAME), MAX_HEADER_BYTES)
    if content.get("format") != FORMAT:
        raise _wrong(folder, f"its format is {str(content.get('format'))[:80]!r}, not {FORMAT!r}")
    tensors, files = content.get("tensors"), content.get("files")
    if not isinstance(tensors, dict) or not isinstance(files, dict):
        raise _wrong(folder, "it lacks tensors or files")
    return Manifest(
        {name: _tensor(folder, name, entry) for name, entry in tensors.items()},
        {name: _file(folder, name, entry) for name, entry in files.items()},
    )


def _tensor(folder: Path, name: str, entry: Any) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "file": str(file), "sha256": str(digest)}:
            if SHA256.fullmatch(digest):
                return TensorEntry(dtype, shape, file, digest)
    raise _wrong(folder, f"tensor {name[:200]!r} lacks a dtype, a shape, a file or a sha256")


def _file(folder: Path, name: str, entry: Any) -> FileEntry:
    match entry:
        case {"bytes": int(count), "sha256": str(digest)} if SHA256.fullmatch(digest):
            return FileEntry(count, digest)
    raise _wrong(folder, f"file {name[:200]!r} lacks its bytes or its sha256")


def _wrong(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3612 MANIFEST_INVALID: {folder / NAME}: {reason}. Remove it to go on without, or "
        "convert the checkpoint again."
    )
