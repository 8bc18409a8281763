"""Where does training go on after an interruption?  At the last whole checkpoint of its folder."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tools.rtp_tiny.optimizer import TrainState

PARTS = ("params", "first", "second")


def save_checkpoint(folder: Path, state: TrainState) -> None:
    """Write the state beside the old one, then take its place in one rename."""
    arrays = {"step": np.asarray(state.step)}
    for part in PARTS:
        named = state._asdict()[part]
        arrays |= {f"{part}/{name}": np.asarray(value) for name, value in named.items()}
    unfinished = folder / "unfinished.npz"
    np.savez(unfinished, **arrays)
    os.replace(unfinished, folder / "checkpoint.npz")


def load_checkpoint(folder: Path) -> TrainState | None:
    """Read the last checkpoint, or return None where there is none."""
    path = folder / "checkpoint.npz"
    if not path.exists():
        return None
    parts: dict[str, dict[str, jnp.ndarray]] = {part: {} for part in PARTS}
    with np.load(path) as arrays:
        step = jnp.asarray(arrays["step"])
        for key in arrays.files:
            part, _, name = key.partition("/")
            if name:
                parts[part][name] = jnp.asarray(arrays[key])
    return TrainState(parts["params"], parts["first"], parts["second"], step)
