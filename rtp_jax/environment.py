"""What is in the environment beside settings: for processes that we start, and libraries.

Settings come from `config.py` alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return what a process that we start finds: our own environment, and some more."""
    return {**os.environ, **more}


def visible_gpus() -> list[str] | None:
    """Name the GPUs that were left to us, or None: nobody said."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def ray_has_token() -> bool:
    """Say whether Ray is told to ask for tokens, and to show one."""
    return os.environ.get("RAY_AUTH_MODE") == "token"


def no_ray_statistics() -> None:
    """Tell Ray, before it is imported, to report nothing to anybody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def cluster_states() -> Path:
    """Folder where the clusters of this user keep their state."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "rtp_jax" / "clusters"
