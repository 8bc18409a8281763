"""How are the bytes of a file read: once, front to back, in large blocks, ahead of who needs them?

While one block is converted, a thread reads the next one into the other of two buffers:

    reader      | block 0 | block 1 | block 2 | ...
    converter             | block 0 | block 1 | ...

No mmap: page faults in file order are half as fast on a cold disk, and a file that shrinks while
it is mapped ends the process instead of raising an error.

Read next: `loader.py`, which gives each tensor its place.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, wait
from io import FileIO

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import open_regular, unreadable
from rtp_jax.weights.safetensors import Header, identity

BLOCK = 16 << 20  # bytes; blocks end where the file offset is a multiple of it


def read_blocks(
    header: Header,
    reader: Executor,
    buffers: tuple[np.ndarray, np.ndarray],
    on_read: Callable[[int], None],
) -> Generator[np.ndarray, None, None]:
    """Yield the data of a file block by block; a block is valid until the next one is asked for."""
    with open_regular(header.path) as file:
        _check_unchanged(header, file)
        file.seek(header.data_start)
        first, *others = _blocks(header, buffers)
        ahead = reader.submit(_fill, header, file, first)
        try:
            for following in [*others, None]:
                block = ahead.result()
                on_read(len(block))
                if following is not None:
                    ahead = reader.submit(_fill, header, file, following)
                yield block
        finally:
            wait([ahead])  # the thread still uses the file and the buffer
        _check_unchanged(header, file)


def _blocks(header: Header, buffers: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Give each block its part of a buffer, at least one block.

    A byte's place in its buffer is its offset in the file modulo the size of the buffer, so that
    tensors which are aligned in the file are aligned in memory.
    """
    step = len(buffers[0])
    inner = range(header.data_start // step * step + step, header.size, step)
    starts, ends = [header.data_start, *inner], [*inner, header.size]
    return [
        buffers[i % 2][start % step : start % step + end - start]
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _fill(header: Header, file: FileIO, block: np.ndarray) -> np.ndarray:
    """Read until `block` is full: one read may return less, or nothing where the file ends."""
    rest = block.data
    while rest:
        try:
            count = file.readinto(rest)
        except OSError as reason:
            raise unreadable(header.path, reason.strerror or str(reason)) from reason
        if not count:
            raise _changed(header, f"it ends {len(rest)} bytes early")
        rest = rest[count:]
    return block


def _check_unchanged(header: Header, file: FileIO) -> None:
    now = identity(file)
    if now != header.identity:
        raise _changed(header, f"(size, time, inode) were {header.identity} and are {now}")


def _changed(header: Header, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3100 FILE_CHANGED: {header.path} changed while it was loaded: {reason}. "
        "Let what writes it finish, then load again."
    )


class ByteStream:
    """The bytes of a file in order, in pieces of any length."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self.blocks = blocks
        self.rest = np.empty(0, np.uint8)  # of the current block

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """Yield the next `count` bytes as they lie in the blocks; each is valid until the next."""
        while count:
            if not self.rest.size:
                self.rest = next(self.blocks)
            piece, self.rest = self.rest[:count], self.rest[count:]
            count -= piece.size
            yield piece

    def fill(self, target: np.ndarray) -> None:
        """Copy the next bytes into all of `target`."""
        start = 0
        for piece in self.pieces(target.size):
            target[start : start + piece.size] = piece
            start += piece.size

    def take(self, count: int, staging: np.ndarray) -> np.ndarray:
        """Give the next bytes in one piece: where they lie, or else gathered in `staging`."""
        if not self.rest.size and count:
            self.rest = next(self.blocks)
        if count <= self.rest.size:
            taken, self.rest = self.rest[:count], self.rest[count:]
            return taken
        self.fill(staging[:count])
        return staging[:count]

    def finish(self) -> None:
        """Read to the end, where the file is checked for changes."""
        left = self.rest.size + sum(block.size for block in self.blocks)
        assert not left, f"{left} bytes belong to no tensor"
