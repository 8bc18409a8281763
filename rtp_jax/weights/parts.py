"""How is a checkpoint cut into parts, each of which is read, converted and placed by itself?

A part is some rows of a tensor, a few megabytes, or all of a tensor that must be seen whole.  Parts
follow each other as their bytes do, so that reading them in order reads files front to back.
Several processes share a checkpoint by parts: each reads a run of tensors of about equal bytes.

Read next: `reader.py`, which fills parts; `loader.py`, which places them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rtp_jax.weights.safetensors import Header, Tensor
from rtp_jax.weights.shards import Range

PART = 4 << 20  # bytes, at most, where rows allow it: fits into a processor's cache


class Part(NamedTuple):
    """Rows of a tensor, or all of it where `rows` is None."""

    header: Header
    tensor: Tensor
    rows: Range | None
    begin: int  # bytes of the data of the file
    end: int
    is_last: bool  # of its tensor

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return self.end - self.begin

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part: that of its tensor with fewer rows."""
        if self.rows is None:
            return self.tensor.shape
        return (self.rows[1] - self.rows[0], *self.tensor.shape[1:])


class Run(NamedTuple):
    """Tensors of one file, end to end, that one process reads."""

    header: Header
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors)


def shared_out(files: Sequence[Header], num_processes: int) -> list[list[Run]]:
    """Deal a checkpoint out: to each process a run of tensors of about equal bytes, in order.

    A tensor goes to the process in whose share its middle lies; no tensor goes to two.
    """
    total = sum(tensor.end - tensor.begin for header in files for tensor in header.tensors)
    shares: list[list[Run]] = [[] for _ in range(num_processes)]
    before = 0
    for header in files:
        dealt: dict[int, list[Tensor]] = {}
        for tensor in header.tensors:
            middle = before + (tensor.end - tensor.begin) / 2
            share = min(int(middle * num_processes / max(total, 1)), num_processes - 1)
            dealt.setdefault(share, []).append(tensor)
            before += tensor.end - tensor.begin
        for share, tensors in (dealt or {0: []}).items():
            shares[share].append(Run(header, tuple(tensors)))
    return shares


def parts_of(
    run: Run, rows_together: Callable[[Tensor], int | None], part_bytes: int
) -> Iterator[Part]:
    """Cut the tensors of a run into parts.

    Args:
      run: what is cut.
      rows_together: how many rows of a tensor stay together, or None if all of them do.
      part_bytes: how large a part is at most, unless rows that stay together are larger.
    """
    for tensor in run.tensors:
        together = rows_together(tensor)
        size = tensor.end - tensor.begin
        if together is None or not tensor.shape or size <= part_bytes:
            yield Part(run.header, tensor, None, tensor.begin, tensor.end, True)
            continue
        row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        step = max(part_bytes // (together * row_bytes), 1) * together
        for start in range(0, tensor.shape[0], step):
            stop = min(start + step, tensor.shape[0])
            begin, end = tensor.begin + start * row_bytes, tensor.begin + stop * row_bytes
            yield Part(run.header, tensor, (start, stop), begin, end, stop == tensor.shape[0])
