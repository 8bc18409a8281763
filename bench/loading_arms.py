"""Ways to load a checkpoint over some devices, and the storage that they read from.

Each way returns its arrays and the bytes it read.  `ours` is the product.  The others read files
as serving engines do, with nothing of torch in them:

    structure    every rank reads each tensor whole, in the order of the model's layers, and keeps
                 its part; all ranks at a time (vLLM, SGLang)
    once         each file is read whole, once and front to back; then its tensors are cut for all
                 ranks (the order of work of fastsafetensors)
    library      `safetensors.numpy.load_file` and `device_put`, on one device
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from safetensors.numpy import load_file

from bench.synthetic import MESH_AXIS, Shapes
from rtp_jax.weights.checkpoint import read_checkpoint
from rtp_jax.weights.loader import load
from rtp_jax.weights.reader import Reading
from rtp_jax.weights.safetensors import Header, Tensor
from rtp_jax.weights.shards import boxes
from rtp_jax.weights.spread import OverMesh

RATE, SEEK_S = 200e6, 0.005  # of a network mount: bytes per second, seconds
BLOCK = 16 << 20

Read = Callable[[int, Any, int], int]


@dataclass(slots=True)
class Mount:
    """A network mount: one line for all, and a pause wherever a file is not read on."""

    rate: float = RATE
    seek_s: float = SEEK_S
    free_s: float = 0.0  # when the line is free again
    num_bytes: int = 0
    num_seeks: int = 0
    ends: dict[int, int] = field(default_factory=dict)  # descriptor -> where its last read ended
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, descriptor: int, pieces: Sequence[np.ndarray], offset: int) -> int:
        """Read, and take as long as the mount would."""
        with self.lock:
            size = sum(piece.nbytes for piece in pieces)
            seek = self.ends.get(descriptor) != offset
            self.ends[descriptor] = offset + size
            self.free_s = max(self.free_s, time.perf_counter()) + size / self.rate
            self.free_s += seek * self.seek_s
            self.num_bytes += size
            self.num_seeks += seek
            until_s = self.free_s
        count = os.preadv(descriptor, pieces, offset)
        time.sleep(max(until_s - time.perf_counter(), 0))
        return count


@dataclass(slots=True)
class Disk:
    """Files as they are."""

    num_bytes: int = 0
    num_seeks: int = 0

    def read(self, descriptor: int, pieces: Sequence[np.ndarray], offset: int) -> int:
        """Read and count."""
        count = os.preadv(descriptor, pieces, offset)
        self.num_bytes += count
        return count


def ours(folder: Path, shapes: Shapes, devices: Sequence, read: Read) -> list[jax.Array]:
    """Load with the product."""
    mesh = Mesh(np.array(devices), (MESH_AXIS,))
    specs = {path: PartitionSpec(*split) for path, split in shapes.splits().items()}
    reading = Reading(read=read)
    parameters, table = shapes.parameters(), shapes.table()
    spread = OverMesh(mesh, specs)
    return list(load(folder, table, parameters, spread=spread, reading=reading).values())


def structure(folder: Path, shapes: Shapes, devices: Sequence, read: Read) -> list[jax.Array]:
    """Let every rank read every tensor, all ranks at a time."""
    where = {t.name: (h, t) for h in read_checkpoint(folder).files for t in h.tensors}

    def rank(number: int) -> list[jax.Array]:
        paths = {header.path for header, _ in where.values()}
        files = {path: os.open(path, os.O_RDONLY) for path in paths}
        found = []
        for name in shapes.tensors():
            header, tensor = where[name]
            memory = np.empty(tensor.end - tensor.begin, np.uint8)
            _fill(files[header.path], memory, header.data_start + tensor.begin, read)
            if (part := _part(shapes, tensor, memory, number, len(devices))) is not None:
                found.append(jax.device_put(np.ascontiguousarray(part), devices[number]))
        for file in files.values():
            os.close(file)
        return found

    with ThreadPoolExecutor(len(devices)) as ranks:
        return [array for found in ranks.map(rank, range(len(devices))) for array in found]


def once(folder: Path, shapes: Shapes, devices: Sequence, read: Read) -> list[jax.Array]:
    """Read each file whole, then place what is in it."""
    found = []
    for header in read_checkpoint(folder).files:
        memory = np.empty(header.size - header.data_start, np.uint8)
        file = os.open(header.path, os.O_RDONLY)
        _fill(file, memory, header.data_start, read)
        os.close(file)
        found += _placed(shapes, header, memory, devices)
    return found


def library(folder: Path, shapes: Shapes, devices: Sequence, read: Read) -> list[jax.Array]:
    """Load with the format's own library; it reads by itself."""
    (device,) = devices
    return [
        jax.device_put(array, device)
        for path in sorted(folder.glob("*.safetensors"))
        for array in load_file(path).values()
    ]


ARMS = {"ours": ours, "structure": structure, "once": once, "library": library}


def _placed(shapes: Shapes, header: Header, memory: np.ndarray, devices) -> list[jax.Array]:
    found = []
    for tensor in header.tensors:
        for number, device in enumerate(devices):
            bytes_ = memory[tensor.begin : tensor.end]
            if (part := _part(shapes, tensor, bytes_, number, len(devices))) is not None:
                found.append(jax.device_put(np.ascontiguousarray(part), device))
    return found


def _part(
    shapes: Shapes, tensor: Tensor, memory: np.ndarray, rank: int, ranks: int
) -> np.ndarray | None:
    """Give a rank its part of a tensor, or None of an expert that is not its own."""
    numbers = np.ndarray(tensor.shape, tensor.dtype, memory)
    words = tensor.name.split(".")
    path = ".".join(word for word in words if not word.isdecimal())
    rows = [int(word) for word in words if word.isdecimal()]
    split = shapes.splits().get(path, ())
    if "experts" in words and rows[1] * ranks // shapes.experts != rank:
        return None
    split = () if "experts" in words else split[len(rows) :]
    box = boxes(tensor.shape, split, {MESH_AXIS: ranks})[rank]
    return numbers[tuple(slice(*ends) for ends in box)]


def _fill(file: int, memory: np.ndarray, offset: int, read: Read) -> None:
    done = 0
    while done < memory.nbytes:
        done += read(file, [memory[done : done + BLOCK]], offset + done)
