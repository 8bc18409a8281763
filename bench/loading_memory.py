"""How often is a checkpoint read, and how much memory does loading take, at each size of mesh?

    python -m bench.synthetic FOLDER dense moe
    python -m bench.loading_memory FOLDER/dense FOLDER/moe --json bench/results/loading-memory.json

Each load has a process of its own, whose devices are virtual ones of the CPU.  What was read is
what the system counts for the process (`/proc/self/io`), headers and index included, over the size
of the files.  Memory is the most that was resident during the load, less what was before.  It may
be what the devices hold, twice the largest tensor, and 256 MB.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bench.record import write_record
from bench.synthetic import KINDS, MESH_AXIS, Shapes
from rtp_jax.weights.checkpoint import read_checkpoint
from rtp_jax.weights.loader import load
from rtp_jax.weights.spread import OverMesh

MESHES = (1, 2, 4, 8)
ALLOWED = 256_000_000  # bytes, besides devices and two tensors
ITEMSIZE = {"BF16": 2, "F32": 4}
ROOT = Path(__file__).parents[1]


def counted(file: str, field: str) -> int:
    """Read a number that the system keeps of this process: bytes, or KiB for its status."""
    lines = Path("/proc/self", file).read_text().splitlines()
    words = next(line for line in lines if line.startswith(field + ":")).split()
    return int(words[1]) * (1024 if words[-1] == "kB" else 1)


def measure(folder: Path, shapes: Shapes, devices: int) -> dict[str, int]:
    """Load once in this process, which has loaded nothing yet; return figures in bytes."""
    mesh = Mesh(jax.devices()[:devices], (MESH_AXIS,))
    specs = {path: PartitionSpec(*split) for path, split in shapes.splits().items()}
    jax.device_put(jnp.zeros(8)).block_until_ready()
    files = sum(header.size for header in read_checkpoint(folder).files)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before, read_before = counted("status", "VmRSS"), counted("io", "rchar")
    loaded = load(folder, shapes.table(), shapes.parameters(), spread=OverMesh(mesh, specs))
    jax.block_until_ready(loaded)
    read = counted("io", "rchar") - read_before
    held = sum(s.data.nbytes for array in loaded.values() for s in array.addressable_shards)
    largest = max(map(math.prod, shapes.tensors().values())) * ITEMSIZE[shapes.dtype]
    return {
        "files": files,
        "read": read,
        "held": held,
        "largest_tensor": largest,
        "peak": counted("status", "VmHWM") - before,
        "may_take": held + 2 * largest + ALLOWED,
    }


def in_own_process(folder: Path, devices: int) -> dict[str, int]:
    """Load once in a process that has so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "bench.loading_memory", str(folder.resolve())]
    done = subprocess.run(
        [*command, "--devices", str(devices)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(folder: Path, devices: int, found: dict[str, int]) -> str:
    """Write a line of the table."""
    words = [folder.name, str(devices), f"{found['files'] / 1e6:.0f}"]
    words += [f"{found['read'] / found['files']:.4f}", f"{found['held'] / 1e6:.0f}"]
    words += [f"{found['peak'] / 1e6:.0f}", f"{found['may_take'] / 1e6:.0f}"]
    over = (found["peak"] - found["held"]) / 1e6
    words += [f"{over:+.0f}" + ("" if found["peak"] <= found["may_take"] else " **missed**")]
    return f"| {' | '.join(words)} |"


def main(options: argparse.Namespace) -> None:
    """Print one row for each checkpoint and mesh."""
    if options.devices:
        (folder,) = options.folders
        print(json.dumps(measure(folder, KINDS[folder.name], options.devices)))
        return
    print("| checkpoint | devices | files, MB | read, times | held, MB | peak, MB | may take, MB |"
          " peak less held |\n|" + "---|" * 8)  # fmt: skip
    figures = []
    for folder in options.folders:
        for devices in MESHES:
            found = in_own_process(folder, devices)
            print(row(folder, devices, found), flush=True)
            figures.append({"checkpoint": folder.name, "devices": devices, **found})
    if options.json:
        write_record(options.json, "loading_memory", ("jax", "jaxlib", "numpy"), {"loads": figures})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--devices", type=int, help="load once, here, and print the figures alone")
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args())
