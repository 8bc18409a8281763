"""rtp_jax: an LLM inference engine on JAX, for CPUs and NVIDIA GPUs.

from rtp_jax import Engine, SamplingParams
"""

import importlib
from typing import TYPE_CHECKING, Any

from rtp_jax.sampling_params import SamplingParams as SamplingParams

if TYPE_CHECKING:
    from rtp_jax.engine.engine import Engine as Engine


def __getattr__(name: str) -> Any:
    """Import the engine, and jax with it, when it is first asked for: clients need neither."""
    if name == "Engine":
        return importlib.import_module("rtp_jax.engine.engine").Engine
    raise AttributeError(f"module 'rtp_jax' has no attribute {name!r}")
