"""How is a checkpoint cut into parts, each of which is read, converted and placed by itself?

A part is some rows of a tensor, a few megabytes, or all of a tensor that must be seen whole.  Parts
follow each other as their bytes do, so that reading them in order reads files front to back.
Several processes share a checkpoint by tensors: each reads about equal bytes of them.

Read next: `reader.py`, which fills parts; `loader.py`, which places them.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rtp_jax.weights.safetensors import Header, Tensor
from rtp_jax.weights.shards import Range

NOTHING: Mapping[str, Hashable] = MappingProxyType({})
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


def shared_out(
    files: Sequence[Header], num_processes: int, together: Mapping[str, Hashable] = NOTHING
) -> list[list[Run]]:
    """Deal a checkpoint out: to each process runs of tensors of about equal bytes, in order.

    A tensor goes to the process in whose share its middle lies; no tensor goes to two.

    Args:
      files: of the checkpoint.
      num_processes: that share it.
      together: to what a tensor belongs, whose tensors go to one process: where the first is, they
        count as if all of them lay.
    """
    tensors = [tensor for header in files for tensor in header.tensors]
    sizes: dict[Hashable, int] = {}
    for tensor in tensors:
        unit = together.get(tensor.name, tensor.name)
        sizes[unit] = sizes.get(unit, 0) + tensor.end - tensor.begin
    total, before, share_of = max(sum(sizes.values()), 1), 0, {}
    for unit, size in sizes.items():
        middle = before + size / 2
        share_of[unit] = min(int(middle * num_processes / total), num_processes - 1)
        before += size
    shares: list[list[Run]] = [[] for _ in range(num_processes)]
    for header in files:
        runs = itertools.groupby(
            header.tensors, lambda tensor: share_of[together.get(tensor.name, tensor.name)]
        )
        for share, run in runs if header.tensors else [(0, ())]:
            shares[share].append(Run(header, tuple(run)))
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
