"""Tile sizes that were measured on a device and proved better than what reasoning gives.

They are data: `tilings/DEVICE.json`, written by `bench/gpu/run_all.py --part kernels --tune`.  All
kernels for GPUs are for one processor, Hopper, so programs for CUDA read the tables of that.
"""

import functools
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tilings"
DEVICE = "hopper"


def tuned(operation: str, key: str, *, folder: Path = FOLDER) -> tuple[int, ...] | None:
    """Return the numbers of the best tiling for a call, or None if nobody measured it.

    Args:
      operation: the name of a folder of kernels.
      key: what the tiling depends on, as `key_of` writes it.
      folder: where the tables lie.
    """
    row = _table(folder).get(operation, {}).get(key)
    return None if row is None else tuple(row["tiling"])


def key_of(**facts: Any) -> str:
    """Write what a tiling depends on as one line."""
    return " ".join(f"{name}={value}" for name, value in facts.items())


@functools.cache
def _table(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    path = folder / f"{DEVICE}.json"
    return json.loads(path.read_text())["tilings"] if path.exists() else {}
