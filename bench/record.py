"""How a benchmark's figures are written down: with date, machine and versions."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """Name the processor and how many cores this process may use."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(os.sched_getaffinity(0))} cores, {(names or [platform.processor()])[0]}"


def write_record(path: str, bench: str, packages: tuple[str, ...], figures: dict) -> None:
    """Write one JSON file."""
    record = {
        "bench": bench,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        **figures,
    }
    Path(path).write_text(json.dumps(record, indent=1) + "\n")
