"""What does one safetensors file hold, and where?  Its header, checked; never a tensor.

    8 bytes: length of the header | header: JSON | data: the tensors, end to end

The header maps names to `{"dtype", "shape", "data_offsets": [begin, end]}`, counted from the start
of the data.  The tensors cover the data exactly, without holes or overlap, so that reading a file
front to back reads each of them once.  Everything here may come from a stranger: each number is
bounded before it is used.

Read next: `checkpoint.py` for a checkpoint of several files, `loader.py` for the data.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import open_regular, parse_object, read_up_to

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
MAX_NAME = 1000
MAX_AXES = 32

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

STRANGERS = {  # how files begin that are not safetensors
    b"PK": "it is a PyTorch file (.bin, .pt); convert the model to safetensors",
    b"\x80": "it is a Python pickle (.bin, .pt), which is never loaded; convert it to safetensors",
    b"GGUF": "it is a GGUF file; use the safetensors files of the model",
    b"version https://git-lfs": "it is a Git LFS pointer; run `git lfs pull` in its folder",
    b"<": "it is a web page; the download failed, perhaps for want of permission",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: what it is, and which bytes of the data hold it."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """One file: its tensors in the order of their bytes, and how to see that it has changed."""

    path: Path
    tensors: tuple[Tensor, ...]
    data_start: int
    identity: tuple[int, int, int]  # see `identity`
    digest: bytes  # of the header

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.identity[0]


def identity(file: FileIO) -> tuple[int, int, int]:
    """Size, time of the last change and inode: equal as long as nobody touches the file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file."""
    with open_regular(path) as file:
        size, *_ = found = identity(file)
        start = read_up_to(file, path, 8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise malformed(path, _why_no_header(path, file, size))
        text = read_up_to(file, path, length)
        if len(text) < length or identity(file) != found:
            raise malformed(path, "it changed while it was read; let the download finish")
    tensors = _tensors(path, parse_object(text, f"the header of {path}"), size - 8 - length)
    digest = hashlib.blake2b(text, digest_size=32).digest()
    return Header(path, tensors, 8 + length, found, digest)


def _why_no_header(path: Path, file: FileIO, size: int) -> str:
    file.seek(0)
    beginning = read_up_to(file, path, 32)
    for mark, reason in STRANGERS.items():
        if beginning.startswith(mark):
            return reason
    if size < 8:
        return f"it has {size} bytes, fewer than the 8 of the header's length"
    length = int.from_bytes(beginning[:8], "little")
    return f"it has {size} bytes and announces a header of {length} (at most {MAX_HEADER_BYTES})"


def _tensors(path: Path, entries: dict[str, Any], data_bytes: int) -> tuple[Tensor, ...]:
    """Check all entries of a header, and that together they cover the data exactly."""
    entries.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, data_bytes) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the one before it" if tensor.begin < position else "follows a hole"
            raise malformed(path, f"it begins at byte {tensor.begin} and {what}", tensor.name)
        position = tensor.end
    if position != data_bytes:
        raise malformed(path, f"its tensors have {position} bytes and its data has {data_bytes}")
    return tuple(tensors)


def _tensor(path: Path, name: str, entry: Any, data_bytes: int) -> Tensor:
    if len(name) > MAX_NAME or not name.isprintable():
        raise malformed(path, "that is not a name", name)
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            if rest:
                raise malformed(path, f"it has unknown fields {list(rest)[:3]}", name)
        case _:
            raise malformed(path, "it lacks a dtype, a shape or its two data_offsets", name)
    if kind not in DTYPES:
        known = " ".join(DTYPES)
        raise malformed(path, f"its dtype is {kind[:20]!r}, known are {known}", name)
    if len(shape) > MAX_AXES or not all(_is_count(n, 1 << 48) for n in shape):
        raise malformed(path, f"its shape is {str(shape[:8])[:80]}, not a list of sizes", name)
    if not _is_count(begin, data_bytes) or not _is_count(end, data_bytes) or begin > end:
        what = f"its data_offsets {str([begin, end])[:80]} are not inside the data"
        raise malformed(path, f"{what} of {data_bytes} bytes", name)
    dtype = DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise malformed(path, f"{kind} {shape} needs {needed} bytes, it has {end - begin}", name)
    return Tensor(name, dtype, tuple(shape), begin, end)


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit  # True is not a number


def malformed(path: Path, reason: str, tensor: str | None = None) -> CheckpointError:
    """Say what is wrong with a file, or with one tensor in it."""
    where = f"{path}, tensor {tensor[:200]!r}" if tensor is not None else str(path)
    return CheckpointError(
        f"RTPJ-3020 SAFETENSORS_INVALID: {where}: {reason}. "
        "Download the file again, or convert the model anew."
    )
