"""Loads over meshes, as the tests run it: what came is compared with what was written.

    python -m tests.weights.spread_loads FOLDER [process/processes/port]

In FOLDER is a checkpoint for each kind of `models.py`.  Prints for each load how many bytes of data
the process read.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtp_jax.runner.exchange import MeshExchange
from rtp_jax.weights import loader
from rtp_jax.weights.checkpoint import read_checkpoint
from rtp_jax.weights.reader import Reading
from rtp_jax.weights.spread import OverMesh
from tests.weights.models import LAYOUTS, MODELS
from tests.weights.written import counted, random_split

ONE_PROCESS = [{"t": 1}, {"t": 2}, {"t": 4}, {"t": 8}, {"d": 2, "t": 4}, {"t": 2, "d": 2}]


def check(folder: Path, kind: str, axes: Mapping[str, int], seed: int) -> int:
    """Load once; return the bytes of data that were read."""
    model = MODELS[kind]()
    wanted = model.wanted
    count = int(np.prod(list(axes.values())))
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(*axes.values()), tuple(axes))
    specs = {
        path: PartitionSpec(*random_split(array.shape, axes, seed + i))
        for i, (path, array) in enumerate(wanted.items())
    }
    reading, read = counted(Reading(block_bytes=1000 + seed, readers=1 + seed % 3))
    several = jax.process_count() > 1
    loaded = loader.load(
        folder,
        model.table,
        model.parameters,
        encoders=model.encoders,
        spread=OverMesh(mesh, specs),
        exchange=MeshExchange(mesh, 5000) if several else None,
        reading=reading,
    )
    assert loaded.keys() == wanted.keys()
    for path, array in loaded.items():
        assert array.sharding == NamedSharding(mesh, specs[path]), path
        assert array.dtype == wanted[path].dtype
        for shard in array.addressable_shards:
            assert shard.data.devices() == {shard.device}
            np.testing.assert_array_equal(
                np.asarray(shard.data), wanted[path][shard.index], err_msg=path
            )
    return sum(read)


def main(folder: Path, connection: str) -> None:
    """Load over every mesh, or over all devices of several processes."""
    meshes = ONE_PROCESS
    if connection:
        process, processes, port = map(int, connection.split("/"))
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
        meshes = [{"t": jax.device_count()}, {"d": 2, "t": jax.device_count() // 2}]
    reports = []
    kinds = [*["plain", "quantized", "gathered"] * (1 if connection else 2), *LAYOUTS]
    for axes in meshes:
        for seed, kind in enumerate(kinds):
            loader.PART = 256 if kind not in LAYOUTS else 16384  # so that tensors come in parts
            data_bytes = sum(h.size - h.data_start for h in read_checkpoint(folder / kind).files)
            read = check(folder / kind, kind, axes, seed)
            reports.append({"mesh": axes, "kind": kind, "read": read, "data": data_bytes})
    print(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
