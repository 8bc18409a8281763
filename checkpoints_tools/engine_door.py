"""How does a command reach the engine?  When it needs it: importing jax takes seconds."""

from collections.abc import Callable
from typing import Any

import rtp_jax
from rtp_jax.late_imports import late

building = late("rtp_jax.engine.build")  # plans and builds engines


def start_engine(model: str, say: Callable[[str], None], **options: Any) -> Any:
    """Load a model; use the result as a context manager."""
    return rtp_jax.Engine(model, progress=say, **options)
