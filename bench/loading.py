"""How long does loading take: against the disk, a network mount, the format's library and peers?

    python -m bench.synthetic FOLDER dense moe
    python -m bench.loading FOLDER/dense --json bench/results/loading_dense.json

Runs of all arms alternate; a figure is the median of `--rounds`.  Devices are virtual ones of the
CPU.  Cold: the files' pages are dropped from the cache before (`posix_fadvise`).  The mount is a
model: 200 MB/s in all, 5 ms wherever a file is not read on (`loading_arms.py`, which also says what
the arms of peers do); its floor is the size of the files over its rate.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from bench.loading_arms import ARMS, RATE, Disk, Mount
from bench.record import write_record
from bench.synthetic import KINDS

DEVICES = 8
LOCAL = [("dd", 0, "cold"), ("ours", 1, "cold"), ("ours", 8, "cold")]
LOCAL += [("ours", 1, "warm"), ("library", 1, "warm"), ("ours", 8, "warm")]
LOCAL += [("once", 8, "warm"), ("structure", 8, "warm")]
MOUNTED = [("ours", 1), ("ours", 8), ("once", 8)]


def drop_pages(files: Sequence[Path]) -> None:
    """Make the next read of files go to the disk."""
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def dd(files: Sequence[Path]) -> float:
    """Time reading files with nothing else."""
    started = time.perf_counter()
    for path in files:
        command = ["dd", f"if={path}", "of=/dev/null", "bs=16M"]
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def timed(arm: str, folder: Path, devices: int, storage: Disk | Mount) -> float:
    """Load once."""
    gc.collect()
    started = time.perf_counter()
    arrays = ARMS[arm](folder, KINDS[folder.name], jax.devices()[:devices], storage.read)
    jax.block_until_ready(arrays)
    return time.perf_counter() - started


def local(folder: Path, rounds: int) -> dict[str, float]:
    """Time all arms on the local disk."""
    files = sorted(folder.glob("*.safetensors"))
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for arm, devices, state in LOCAL:
            if state == "cold":
                drop_pages(files)
            took = dd(files) if arm == "dd" else timed(arm, folder, devices, Disk())
            seconds.setdefault(f"{state} {arm} {devices}", []).append(took)
    return {name: round(statistics.median(several), 3) for name, several in seconds.items()}


def mounted(folder: Path, arms: Sequence[tuple[str, int]]) -> dict[str, dict[str, float]]:
    """Time arms once on the mount, where time is the model's and hardly varies."""
    size, figures = sum(path.stat().st_size for path in folder.glob("*.safetensors")), {}
    for arm, devices in arms:
        mount = Mount()
        took = timed(arm, folder, devices, mount)
        figures[f"mount {arm} {devices}"] = {
            "seconds": round(took, 3),
            "over_floor": round(took / (size / RATE), 3),
            "files_read": round(mount.num_bytes / size, 3),
            "seeks": mount.num_seeks,
        }
    return figures


def main(options: argparse.Namespace) -> None:
    """Print all figures, and judge them."""
    folder = options.folder
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = local(folder, options.rounds)
    arms = [*MOUNTED, ("structure", 8)] if options.peers_on_mount else MOUNTED
    figures: dict = {"size_gb": round(size / 1e9, 3), "seconds": found}
    figures["mount"] = mounted(folder, arms)
    seconds = found
    figures["judged"] = {
        "cold over dd, at most 1.15": round(seconds["cold ours 1"] / seconds["cold dd 0"], 3),
        "cold over dd at 8, at most 1.15": round(seconds["cold ours 8"] / seconds["cold dd 0"], 3),
        "warm over library, at most 1": round(
            seconds["warm ours 1"] / seconds["warm library 1"], 3
        ),
        "mount over floor, at most 1.05": figures["mount"]["mount ours 8"]["over_floor"],
    }
    for group in ("seconds", "mount", "judged"):
        for name, figure in figures[group].items():
            print(f"{name:>32}: {figure}")
    if options.json:
        write_record(options.json, "loading", ("jax", "numpy", "safetensors"), figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-on-mount", action="store_true", help="8 times as long")
    parser.add_argument("--json")
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    if os.environ.get("XLA_FLAGS") != flags:  # the devices of jax are counted when it starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "bench.loading", *sys.argv[1:]],
            {**os.environ, "XLA_FLAGS": flags},
        )
    main(parser.parse_args())
