"""How does a command reach the engine?  When it needs it: importing jax takes seconds.

The front door, `rtp_jax/__init__.py`, imports the engine when somebody first asks for it.
"""

from collections.abc import Callable
from typing import Any

import rtp_jax
from rtp_jax.config import EngineConfig
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.serving.settings import Settings

building = late("rtp_jax.engine.build")  # and jax


def start_engine(
    settings: Settings, say: Callable[[str], None], metrics: Metrics | None = None
) -> Any:
    """Build the engine that settings describe; returns when it can serve."""
    model, options = settings.model, settings.engine_options()
    return rtp_jax.Engine(model, progress=say, metrics=metrics, **options)


def decided(settings: Settings) -> Any:
    """Resolve a model and its memory as the engine would; reads small files only."""
    model, config = settings.model, EngineConfig.from_options(**settings.engine_options())
    return building.decide(model, config)
