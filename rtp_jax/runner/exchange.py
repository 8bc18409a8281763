"""An exchange of bytes between the processes of a mesh: one all-to-all over a device of each.

Read next: `weights/exchange.py`, for what is exchanged and when.
"""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtp_jax.parallel.devices import Device

ROUND = 32 << 20  # bytes


class MeshExchange:
    """Connects the processes of a mesh through the first device that each has in it."""

    def __init__(self, mesh: Mesh, round_bytes: int = ROUND):
        self.round_bytes = round_bytes
        first: dict[int, Device] = {}
        for device in mesh.devices.flat:
            first.setdefault(device.process_index, device)
        processes = sorted(first)
        self._mesh = Mesh(np.array([first[process] for process in processes]), ("process",))
        self._mine = first[jax.process_index()]
        self.num_processes, self.process = len(processes), processes.index(jax.process_index())

    def swap(self, rows: np.ndarray) -> np.ndarray:
        """Send row p to process p; return what each process sent to this one, a row each."""
        count, width = rows.shape
        assert count == self.num_processes, rows.shape
        sent = NamedSharding(self._mesh, PartitionSpec("process", None, None))
        mine = jax.device_put(rows[None], self._mine)
        every = jax.make_array_from_single_device_arrays((count, count, width), sent, [mine])
        (came,) = _transposed(self._mesh)(every).addressable_shards
        return np.asarray(came.data)[:, 0]


@functools.cache
def _transposed(mesh: Mesh):
    """Compile the all-to-all: sharded by sender before, by receiver after."""
    return jax.jit(
        lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec(None, "process", None))
    )
