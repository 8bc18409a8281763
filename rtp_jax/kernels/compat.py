"""What differs between the versions of jax, and what is private in it: here and nowhere else."""

from typing import Any

import jax

from rtp_jax.late_imports import late

# Mosaic GPU before 0.11 infers no layouts of its own and has no interpreter that finds races.
HAS_MOSAIC_GPU = jax.__version_info__ >= (0, 11)


if HAS_MOSAIC_GPU:
    _simulator = late("jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks")


def races_found() -> bool:
    """Say whether the last GPU kernel that was simulated, to look for races, had one."""
    return _simulator.get_races().races_found


def end_transfers(connection: Any) -> None:
    """Make all pulls of a connection of `jax.experimental.transfer` fail, as far as jax can."""
    if hasattr(connection, "_poison_connection"):  # private: on both lines that we support
        connection._poison_connection()
