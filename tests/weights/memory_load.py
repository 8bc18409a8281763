"""Loads over a mesh and reports the memory that it took.

python -m tests.weights.memory_load FOLDER DEVICES
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bench.synthetic import MESH_AXIS, Shapes
from rtp_jax.weights.loader import load
from rtp_jax.weights.spread import OverMesh

# 300 MB in float32, 150 MB in bfloat16; its largest tensor has 64 MB.
SHAPES = Shapes(
    layers=6, hidden=1024, mlp=2048, queries=1024, kv=512, vocab=16384, files=2, dtype="F32"
)


def memory(field: str) -> int:
    """Read a field of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main(folder: Path, devices: int) -> None:
    """Load once."""
    mesh = Mesh(jax.devices()[:devices], (MESH_AXIS,))
    specs = {path: PartitionSpec(*split) for path, split in SHAPES.splits().items()}
    jax.device_put(jnp.zeros(8)).block_until_ready()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before = memory("VmRSS")
    loaded = load(folder, SHAPES.table(), SHAPES.parameters(), spread=OverMesh(mesh, specs))
    held = sum(s.data.nbytes for array in loaded.values() for s in array.addressable_shards)
    print(json.dumps({"held": held, "peak": memory("VmHWM") - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
