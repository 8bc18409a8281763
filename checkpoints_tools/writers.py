"""Which files does an output have, and what is in each?  Known to the byte before one is written.

A file is a list of parts, one after the other.  A part knows its size and makes its bytes when it
is asked, block by block: a header from memory, a tensor from its source, a tokenizer by copying it.

Read next: `job.py`, which writes them.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints_tools.orbax_layout import (
    COMMITTED,
    array_description,
    check_writable,
    commit_description,
    tree_description,
)
from rtp_jax.weights.orbax import METADATA, chunk_name
from rtp_jax.weights.safetensors import DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # of the data of a file: a tensor that is aligned in the file is aligned in memory
INDEX = "model.safetensors.index.json"

Make = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written, and what makes its bytes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Make

    @property
    def num_bytes(self) -> int:
        """How many bytes `make` yields."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file; those of `tensor`, if it is one."""

    num_bytes: int
    make: Make
    tensor: OutputTensor | None = None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file: its path in the output, with slashes, and its parts in order."""

    name: str
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """How large it will be."""
        return sum(part.num_bytes for part in self.parts)


def given(name: str, content: bytes) -> OutputFile:
    """Make a file of bytes that are known."""
    return OutputFile(name, (_bytes(content),))


def _bytes(content: bytes) -> Part:
    return Part(len(content), lambda: iter((np.frombuffer(content, np.uint8),)))


def safetensors_files(
    tensors: Sequence[OutputTensor], *, max_file_bytes: int
) -> tuple[list[OutputFile], list[OutputFile]]:
    """Deal tensors out to files of at most `max_file_bytes`, or of one tensor that is larger.

    Returns:
      The files with tensors, and those that complete them: the index, where there are several.
    """
    groups = _groups(tensors, max_file_bytes)
    if len(groups) == 1:
        return [_safetensors_file("model.safetensors", groups[0])], []
    names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    files = [_safetensors_file(name, group) for name, group in zip(names, groups, strict=True)]
    total = sum(tensor.num_bytes for tensor in tensors)
    file_of = {t.name: name for name, group in zip(names, groups, strict=True) for t in group}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    return files, [given(INDEX, json.dumps(index, indent=2).encode() + b"\n")]


def _groups(tensors: Sequence[OutputTensor], max_file_bytes: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.num_bytes > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.num_bytes
    return groups


def _safetensors_file(name: str, tensors: Sequence[OutputTensor]) -> OutputFile:
    """Lay out one file; wide numbers come first, so that all are aligned."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # stable
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which transformers asks for
    position = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.num_bytes],
        }
        position += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    head = _bytes(len(text).to_bytes(8, "little") + text)
    return OutputFile(name, (head, *(Part(t.num_bytes, t.make, t) for t in ordered)))


def orbax_files(tensors: Sequence[OutputTensor]) -> tuple[list[OutputFile], list[OutputFile]]:
    """Give each tensor a file of its own, and one that describes it.

    Returns:
      The files of the tensors, and those that make the folder a checkpoint.
    """
    files = []
    for tensor in tensors:
        check_writable(tensor.name, tensor.shape)
        chunk = f"{tensor.name}/{chunk_name(tensor.shape)}"
        files.append(OutputFile(chunk, (Part(tensor.num_bytes, tensor.make, tensor),)))
        description = array_description(tensor.dtype, tensor.shape)
        files.append(given(f"{tensor.name}/.zarray", description))
    tree = given(METADATA, tree_description([tensor.name for tensor in tensors]))
    return files, [tree, given(COMMITTED, commit_description())]
