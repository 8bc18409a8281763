"""The device that is measured, and what it reaches at best."""

import os
import subprocess
from typing import Any

import jax

from bench.gpu.results import Results
from bench.gpu.timing import Limits, Scale, measure_limits


def open_device(results: Results, *, dry: bool) -> tuple[Scale, Limits]:
    """Take the GPU, or the CPU in the dry mode, and measure its limits anew.

    Figures are shares of what the device reaches in this process: clocks differ from day to day.
    """
    device = jax.devices("cpu" if dry else "gpu")[0]
    scale = Scale(dry, device, "cpu" if dry else "cuda")
    limits, measured = measure_limits(scale)
    results.describe(device=device.device_kind, **driver(dry=dry), **measured)
    return scale, limits


def driver(*, dry: bool) -> dict[str, Any]:
    """Ask for the driver, the clocks and the memory."""
    if dry:
        return {"cores": os.cpu_count()}
    fields = "driver_version,clocks.max.sm,clocks.max.mem,memory.total,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as reason:
        return {"driver": f"unknown: {reason}"}
    return {"driver, clocks, memory, power": answer.stdout.strip()}
