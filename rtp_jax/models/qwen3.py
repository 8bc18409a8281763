"""Qwen3 dense: no biases, but every head's query and key are normalised before they are turned.

Source: Yang et al. 2025 (arXiv:2505.09388), section 2.
"""

from rtp_jax.models.dense_fields import read_dense, read_windows
from rtp_jax.models.fields import Fields
from rtp_jax.models.spec import ModelSpec

HEAD_DIM = 128  # where the config does not say, whatever the width


def parse(config: Fields) -> ModelSpec:
    """Read a Qwen3 config."""
    bias = config.flag("attention_bias", False)
    return read_dense(
        config,
        head_dim=HEAD_DIM,
        head_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        windows=read_windows(config),
    )
