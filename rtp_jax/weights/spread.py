"""Over which devices is each parameter spread, and how do its buffers become one array there?

`OneDevice` holds everything whole.  `OverMesh` follows a `PartitionSpec` for each parameter, on the
devices of one process or of several; a parameter without one is whole on every device.

Read next: `held.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtp_jax.weights.shards import Box, Shape, boxes, whole

Place = Callable[[str, np.ndarray], jax.Array]


class Spread(Protocol):
    """Says who holds what, and puts it there."""

    @property
    def num_processes(self) -> int:
        """How many processes hold parts of the model."""
        ...

    @property
    def process(self) -> int:
        """Which of them this is."""
        ...

    def boxes(self, path: str, shape: Shape, process: int) -> list[Box]:
        """Give the boxes that the devices of a process hold of a parameter, in their order."""
        ...

    def assemble(self, path: str, shape: Shape, buffers: Mapping[Box, np.ndarray]) -> jax.Array:
        """Turn the buffers of this process, which are then the array's own, into an array."""
        ...


@dataclass(frozen=True, slots=True)
class OneDevice:
    """Everything whole, on the device that `place` chooses."""

    place: Place
    num_processes: int = 1
    process: int = 0

    def boxes(self, path: str, shape: Shape, process: int) -> list[Box]:
        """Give the box of all of it."""
        return [whole(shape)]

    def assemble(self, path: str, shape: Shape, buffers: Mapping[Box, np.ndarray]) -> jax.Array:
        """Place the only buffer."""
        (buffer,) = buffers.values()
        return self.place(path, buffer)


class OverMesh:
    """Parameters spread over the devices of a mesh."""

    def __init__(self, mesh: Mesh, specs: Mapping[str, PartitionSpec]):
        self.mesh, self.specs = mesh, specs
        devices = list(mesh.devices.flat)
        processes = sorted({device.process_index for device in devices})
        self.num_processes = len(processes)
        mine = [device.process_index for device in devices if device in mesh.local_devices]
        assert mine, "this process has no device of the mesh"
        self.process = processes.index(mine[0])
        self.rank_of = [processes.index(device.process_index) for device in devices]
        self._known: dict[tuple[str, int], list[Box]] = {}  # asked for each part of a tensor

    def boxes(self, path: str, shape: Shape, process: int) -> list[Box]:
        """Give the boxes of the devices of a process."""
        if (path, process) not in self._known:
            split = self.specs.get(path, PartitionSpec())
            every = zip(boxes(shape, tuple(split), self.mesh.shape), self.rank_of, strict=True)
            self._known[path, process] = [box for box, rank in every if rank == process]
        return self._known[path, process]

    def assemble(self, path: str, shape: Shape, buffers: Mapping[Box, np.ndarray]) -> jax.Array:
        """Send each device its buffer, and make one array of all."""
        devices = [
            device
            for device, rank in zip(self.mesh.devices.flat, self.rank_of, strict=True)
            if rank == self.process
        ]
        mine = self.boxes(path, shape, self.process)
        arrays = [
            jax.device_put(buffers[box], device) for box, device in zip(mine, devices, strict=True)
        ]
        sharding = NamedSharding(self.mesh, self.specs.get(path, PartitionSpec()))
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
