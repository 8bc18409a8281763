"""Llama: the dense decoder as it is, with the biases that a config may ask for.

Source: Touvron et al. 2023 (arXiv:2307.09288), section 2.2; Llama 3 changes only the rope.
"""

from rtp_jax.models.dense_fields import read_dense
from rtp_jax.models.fields import Fields
from rtp_jax.models.spec import ModelSpec


def parse(config: Fields) -> ModelSpec:
    """Read a Llama config."""
    config.refuse("sliding_window", "Llama attends to everything.")
    bias = config.flag("attention_bias", False)
    return read_dense(
        config,
        kv_heads=config.integer("num_attention_heads"),  # before grouped queries
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
