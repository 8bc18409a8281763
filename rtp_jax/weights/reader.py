"""How are the bytes of files read: once, front to back, in large blocks, ahead of who needs them?

A few threads read blocks that end at multiples of the block's size, straight into the memory that
whoever places the bytes has opened for them; they hold no lock of the interpreter while they do:

    file       | block 0 | block 1 | block 2 | block 3 | ...
    thread 0   | block 0 |    block 2   | ...
    thread 1     | block 1 |   block 3   | ...
    memory     [norm][   matrix, rows 0..2047   ][   matrix, rows 2048..   ] ...

Blocks are handed to the threads in the order of the file, so that a network mount sees one reader
that goes forward.  No mmap: page faults in file order are half as fast on a cold disk, and a file
that shrinks while it is mapped ends the process instead of raising an error.

Read next: `loader.py`, which opens memory and gives each tensor its place.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from io import FileIO
from typing import Any, Protocol

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import open_regular, unreadable
from rtp_jax.weights.parts import Part
from rtp_jax.weights.safetensors import Header, identity

MAX_PIECES = 1024  # of memory for one call of the system (IOV_MAX)
Read = Callable[[int, Any, int], int]  # descriptor, pieces of memory (uint8), offset


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read; the defaults suit local disks and network mounts alike."""

    block_bytes: int = 8 << 20  # read by one thread at a time
    readers: int = 4  # threads, so that a mount or a disk always has something to do
    ahead: int = 6  # blocks that are being read or wait to be placed
    read: Read = os.preadv


class Sink(Protocol):
    """Takes the bytes of parts."""

    def open(self, part: Part) -> list[np.ndarray] | None:
        """Give memory (uint8) for all bytes of a part in order, or None while there is no room."""
        ...

    def full(self, part: Part) -> None:
        """Take a part whose memory is filled; parts come in the order in which they were opened."""
        ...

    def wait(self) -> None:
        """Wait until there is more room."""
        ...


def read_parts(
    files: Iterable[tuple[Header, Iterable[Part]]],
    sink: Sink,
    how: Reading,
    on_read: Callable[[int], None],
) -> None:
    """Read parts of several files; those of a file follow each other without a hole."""
    with ThreadPoolExecutor(how.readers, "read-weights") as threads:
        ahead = _Ahead(threads, sink, how, on_read)
        try:
            for header, parts in files:
                ahead.read(header, parts)
            ahead.finish()
        finally:
            ahead.leave()


@dataclass(slots=True)
class _Block:
    """Bytes that one thread reads: where to, and which parts are full then."""

    header: Header
    file: FileIO
    offset: int
    pieces: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    fills: list[Part] = field(default_factory=list)
    ends_file: bool = False


class _Ahead:
    """Blocks on their way, oldest first."""

    def __init__(
        self, threads: ThreadPoolExecutor, sink: Sink, how: Reading, on_read: Callable[[int], None]
    ):
        self.threads, self.sink, self.how, self.on_read = threads, sink, how, on_read
        self.waiting: deque[tuple[_Block, Future[None]]] = deque()
        self.open_files: list[FileIO] = []

    def read(self, header: Header, parts: Iterable[Part]) -> None:
        """Send the blocks of a file on their way."""
        file = open_regular(header.path)
        self.open_files.append(file)
        _check_unchanged(header, file)
        block = _Block(header, file, -1)
        for part in parts:
            if block.offset < 0:
                block.offset = header.data_start + part.begin
            opened = self.sink.open(part)
            while opened is None:
                block = self._make_room(block)
                opened = self.sink.open(part)
            block = self._add(block, part, opened)
        block.ends_file = True
        self._send(block)

    def finish(self) -> None:
        """Wait for all blocks."""
        while self.waiting:
            self._take_oldest()

    def leave(self) -> None:
        """Close what is open; threads may still use it, so wait for them first."""
        for _, future in self.waiting:
            future.cancel()
        wait([future for _, future in self.waiting])
        for file in self.open_files:
            file.close()

    def _add(self, block: _Block, part: Part, opened: list[np.ndarray]) -> _Block:
        """Add a part to a block, and to those after it where it is longer."""
        assert sum(memory.nbytes for memory in opened) == part.size, part
        for memory in opened:
            start = 0
            while start < memory.nbytes:
                if self._room_in(block) == 0:
                    block = self._send(block)
                end = min(start + self._room_in(block), memory.nbytes)
                block.pieces.append(memory[start:end])
                block.size += end - start
                start = end
        block.fills.append(part)
        return block

    def _room_in(self, block: _Block) -> int:
        """Bytes until the next multiple of the block size."""
        return self.how.block_bytes - block.offset % self.how.block_bytes - block.size

    def _send(self, block: _Block) -> _Block:
        """Let a thread read a block, and begin the next one."""
        while len(self.waiting) >= self.how.ahead:
            self._take_oldest()
        self.waiting.append((block, self.threads.submit(_fill, block, self.how.read)))
        return _Block(block.header, block.file, block.offset + block.size)

    def _make_room(self, block: _Block) -> _Block:
        """Bring what is open to its end, as far as it takes for more to be opened."""
        if block.fills or block.size:
            block = self._send(block)
        if self.waiting:
            self._take_oldest()
        else:
            self.sink.wait()
        return block

    def _take_oldest(self) -> None:
        block, future = self.waiting[0]
        future.result()
        self.waiting.popleft()
        self.on_read(block.size)
        for part in block.fills:
            self.sink.full(part)
        if block.ends_file:
            _check_unchanged(block.header, block.file)
            block.file.close()
            self.open_files.remove(block.file)


def _fill(block: _Block, read: Read) -> None:
    """Read until a block is full: one read may return less, or nothing where the file ends.

    A signal does not end a read early: the interpreter starts it again.
    """
    done, pieces = 0, deque(block.pieces)
    while done < block.size:
        try:
            some = [pieces[i] for i in range(min(len(pieces), MAX_PIECES))]
            count = read(block.file.fileno(), some, block.offset + done)
        except OSError as reason:
            raise unreadable(block.header.path, reason.strerror or str(reason)) from reason
        if not count:
            raise _changed(block.header, _where_it_ends(block, done))
        done += count
        while count:
            if count < pieces[0].nbytes:
                pieces[0] = pieces[0][count:]
                break
            count -= pieces.popleft().nbytes


def _where_it_ends(block: _Block, done: int) -> str:
    end = block.offset + done - block.header.data_start
    tensor = next(tensor.name for tensor in block.header.tensors if tensor.end > end)
    return f"it ends early, at byte {end} of its data, within tensor {tensor}"


def _check_unchanged(header: Header, file: FileIO) -> None:
    now = identity(file)
    if now != header.identity:
        raise _changed(header, f"(size, time, inode) were {header.identity} and are {now}")


def _changed(header: Header, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3100 FILE_CHANGED: {header.path} changed while it was loaded: {reason}. "
        "Let what writes it finish, then load again."
    )
