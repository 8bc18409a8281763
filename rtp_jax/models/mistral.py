"""Mistral: Llama without biases, whose layers may all look back through one sliding window.

Source: Jiang et al. 2023 (arXiv:2310.06825), section 2.
"""

from rtp_jax.models.dense_fields import read_dense
from rtp_jax.models.fields import Fields
from rtp_jax.models.spec import ModelSpec


def parse(config: Fields) -> ModelSpec:
    """Read a Mistral config."""
    config.refuse("layer_types", "All layers of this architecture are alike.")
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    return read_dense(config, windows=(window,) * config.integer("num_hidden_layers"))
