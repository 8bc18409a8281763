"""How do pages leave the device and come back?

    read    pages of the KV arrays --gather--> new arrays --(another thread)--> records
    write   payloads --(another thread)--> staged arrays --scatter--> pages of the KV arrays

The arrays that hold KV are donated to every step, so nobody but the engine's thread touches them:
it enqueues compiled copies between two steps and goes on.  Programs run in the order in which they
are enqueued, so a gather sees what earlier steps wrote and nothing of later ones.  Bytes are waited
for, hashed and joined on threads that hold only copies.

A record is a whole page, however many devices share it: its parts are joined on the host, and come
back as parts.

Copies come in a few sizes, powers of two (`PageMover.sizes`); a number of pages is taken apart into
them, so nothing is padded.
Read next: `page_record.py` for the order of bytes in a payload.
"""

import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.pages import KVGroup
from rtp_jax.page_record import (
    GroupLayout,
    KvLayout,
    PageMoves,
    PageRead,
    PageWrite,
    record_of,
)
from rtp_jax.parallel.devices import WHOLE, Devices
from rtp_jax.runner.kv_arrays import KV_SPEC
from rtp_jax.runner.programs import Program
from rtp_jax.weights.convert import aligned

SIZES = (32, 16, 8, 4, 2, 1)  # pages that one program copies
# Bytes of a copy, if a page is not larger.  glibc keeps freed memory of up to this size for others;
# larger memory comes from the system each time, and its first touch is slow.
LARGEST_COPY = 32 << 20
HANDED_AT_ONCE = 1 << 20  # bytes of records: who sends them on fills a message with them


class Staged(NamedTuple):
    """Payloads as arrays of the device."""

    leaves: tuple[jax.Array, ...]  # [size, ...] of each array of each KV group
    size: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """Copies of pages that are on their way to the host."""

    leaves: tuple[jax.Array, ...]
    reads: Sequence[PageRead]


class PageMover:
    """Copies pages between the KV arrays and the host."""

    def __init__(self, kv: tuple[KVGroup, ...], devices: Devices):
        """Describe the copies for arrays of these shapes; `start_reading` comes before any read."""
        self._kv = kv
        self._devices = devices
        self._shapes = [(leaf.shape[1:], np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(kv)]
        self._leaf_bytes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._shapes]
        self.page_bytes = sum(self._leaf_bytes)
        fitting = [size for size in SIZES if size * self.page_bytes <= LARGEST_COPY]
        self.sizes = tuple(fitting) or SIZES[-1:]
        self._handed_at_once = max(HANDED_AT_ONCE // self.page_bytes, 1)
        self._programs: Mapping[str, jax.stages.Compiled] = {}
        self._gathered: queue.SimpleQueue[Gathered | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def largest(self) -> int:
        """Pages that are copied at once, at most."""
        return self.sizes[0]

    def programs(self) -> list[Program]:
        """Describe both copies of every size."""
        described = []
        for size in self.sizes:
            ids = jax.ShapeDtypeStruct((size,), jnp.int32)
            leaves = tuple(
                jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in self._shapes
            )
            gather = Program(
                f"gather-{size}",
                gather_pages,
                (self._kv, ids),
                leaves,
                in_specs=(KV_SPEC, WHOLE),
                out_specs=KV_SPEC,
            )
            scatter = Program(
                f"scatter-{size}",
                scatter_pages,
                (self._kv, leaves, ids),
                self._kv,
                donated=(0,),
                in_specs=(KV_SPEC, KV_SPEC, WHOLE),
                out_specs=KV_SPEC,
            )
            described += [gather, scatter]
        return described

    def start_reading(self, programs: Mapping[str, jax.stages.Compiled]) -> None:
        """Take the compiled programs, and start the thread that waits for bytes."""
        self._programs = programs
        self._thread = threading.Thread(target=self._read_all, name="rtp-pages", daemon=True)
        self._thread.start()

    def warm_up(self, kv: tuple[KVGroup, ...]) -> tuple[KVGroup, ...]:
        """Run every program once, on the null page."""
        for size in self.sizes:
            zeros = self.stage([bytes(self.page_bytes)] * size)
            kv = self._scatter(kv, PageWrite(zeros, [0] * size))
            jax.block_until_ready(self._gather(kv, [0] * size))
        return kv

    def move(self, kv: tuple[KVGroup, ...], moves: PageMoves) -> tuple[KVGroup, ...]:
        """Enqueue copies, on the engine's thread; the arrays handed in are gone if any is written.

        Reads come first: what a move writes, or the next step, does not change what they see.
        """
        num_gathered, gathered = 0, []
        try:
            for size in self._sizes_of(len(moves.reads)):
                reads = moves.reads[num_gathered : num_gathered + size]
                leaves = self._gather(kv, [read.page for read in reads])
                for leaf in leaves:
                    leaf.copy_to_host_async()
                gathered.append(Gathered(leaves, reads))
                num_gathered += size
            for write in moves.writes:
                kv = self._scatter(kv, write)
        except BaseException:
            for read in moves.reads[num_gathered:]:
                read.sink(None)
            raise
        finally:
            for each in gathered:  # last, for whoever makes records of them wants the GIL as well
                self._gathered.put(each)
        return kv

    def stage(self, payloads: Sequence[bytes | memoryview]) -> tuple[Staged, ...]:
        """Bring payloads to the device; on any thread."""
        staged, first = [], 0
        for size in self._sizes_of(len(payloads)):
            staged.append(self._staged(payloads[first : first + size]))
            first += size
        return tuple(staged)

    def _staged(self, payloads: Sequence[bytes | memoryview]) -> Staged:
        """Bring as many payloads as one program copies."""
        size, leaves, offset = len(payloads), [], 0
        for (shape, dtype), num_bytes in zip(self._shapes, self._leaf_bytes, strict=True):
            host = aligned((size, *shape), dtype)  # which jax takes without a copy on a CPU
            rows = host.reshape(size, -1).view(np.uint8)
            for row, payload in zip(rows, payloads, strict=True):
                row[:] = np.frombuffer(payload, np.uint8, num_bytes, offset)
            leaves.append(self._devices.put(host, KV_SPEC))
            offset += num_bytes
        return Staged(tuple(leaves), size)

    def close(self) -> None:
        """Hand out what is still on its way, and end the thread."""
        if self._thread is not None:
            self._gathered.put(None)
            self._thread.join()
            self._thread = None

    def _sizes_of(self, count: int) -> Iterator[int]:
        """Take a number of pages apart, the largest copies first."""
        for size in self.sizes:
            yield from itertools.repeat(size, count // size)
            count %= size

    def _gather(self, kv: tuple[KVGroup, ...], pages: list[int]) -> tuple[jax.Array, ...]:
        """Copy as many pages as one program does."""
        return self._programs[f"gather-{len(pages)}"](kv, np.asarray(pages, np.int32))

    def _scatter(self, kv: tuple[KVGroup, ...], write: PageWrite) -> tuple[KVGroup, ...]:
        first = 0
        for staged in write.staged:
            pages = np.asarray(write.pages[first : first + staged.size], np.int32)
            kv = self._programs[f"scatter-{staged.size}"](kv, staged.leaves, pages)
            first += staged.size
        return kv

    def _read_all(self) -> None:
        """Make records of what was gathered: the body of the reading thread."""
        while (gathered := self._gathered.get()) is not None:
            try:
                leaves = [
                    np.asarray(leaf).reshape(leaf.shape[0], -1).view(np.uint8)
                    for leaf in gathered.leaves
                ]
            except RuntimeError:  # the step before failed, and with it all that came after
                for read in gathered.reads:
                    read.sink(None)
                continue
            numbered = enumerate(gathered.reads)
            while some := list(itertools.islice(numbered, self._handed_at_once)):
                payloads = [b"".join([leaf[row] for leaf in leaves]) for row, _ in some]
                records = [
                    record_of(read.key, read.parent, read.packed, payload)
                    for (_, read), payload in zip(some, payloads, strict=True)
                ]
                for (_, read), record in zip(some, records, strict=True):
                    read.sink(record)


def gather_pages(kv: tuple[KVGroup, ...], pages: jax.Array) -> tuple[jax.Array, ...]:
    """Copy some pages of every array: [pages, ...] of each."""
    return tuple(leaf[pages] for leaf in jax.tree.leaves(kv))


def scatter_pages(
    kv: tuple[KVGroup, ...], leaves: tuple[jax.Array, ...], pages: jax.Array
) -> tuple[KVGroup, ...]:
    """Write some pages of every array, in place when donated."""
    arrays, tree = jax.tree.flatten(kv)
    written = [
        array.at[pages].set(leaf, mode="promise_in_bounds")
        for array, leaf in zip(arrays, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, written)


def layout_of(
    kv: tuple[KVGroup, ...], *, page_size: int, model_epoch: str, kv_scheme: str
) -> KvLayout:
    """Describe the pages of an engine to others."""
    groups = tuple(
        GroupLayout(
            layers=group.pages.shape[1],
            kv_heads=group.pages.shape[3],
            head_dim=group.pages.shape[5],
            dtype=np.dtype(group.pages.dtype).name,
            scales=group.scales is not None,
        )
        for group in kv
    )
    return KvLayout(groups, page_size, model_epoch, kv_scheme)
