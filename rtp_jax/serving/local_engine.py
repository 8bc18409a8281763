"""How does a command start an engine?  By importing it now: it takes seconds, and needs jax."""

import importlib
from collections.abc import Callable
from typing import Any

from rtp_jax.metrics import Metrics
from rtp_jax.serving.settings import Settings


def start_engine(
    settings: Settings, say: Callable[[str], None], metrics: Metrics | None = None
) -> Any:
    """Build the engine that settings describe; returns when it can serve."""
    model, options = settings.model, settings.engine_options()
    module = importlib.import_module("rtp_jax.engine.engine")
    return module.Engine(model, progress=say, metrics=metrics, **options)
