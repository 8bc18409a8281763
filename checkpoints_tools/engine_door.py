"""How does a command reach the engine?  When it needs it: importing jax takes seconds.

The front door, `rtp_jax/__init__.py`, imports the engine when somebody first asks for it.
"""

from collections.abc import Callable
from typing import Any

import rtp_jax


def building() -> Any:
    """Return the module that plans and builds engines."""
    assert rtp_jax.Engine  # which imports the rooms around it
    return rtp_jax.engine.build  # pyright: ignore[reportAttributeAccessIssue]


def start_engine(model: str, say: Callable[[str], None], **options: Any) -> Any:
    """Load a model; use the result as a context manager."""
    return rtp_jax.Engine(model, progress=say, **options)
