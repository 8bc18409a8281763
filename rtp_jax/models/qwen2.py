"""Qwen2 and Qwen2.5: queries, keys and values have biases; the upper layers may have a window.

Source: Yang et al. 2024 (arXiv:2407.10671), section 2.2.
"""

from rtp_jax.models.dense_fields import read_dense, read_windows
from rtp_jax.models.fields import Fields
from rtp_jax.models.spec import ModelSpec


def parse(config: Fields) -> ModelSpec:
    """Read a Qwen2 config."""
    return read_dense(config, qkv_bias=True, windows=read_windows(config))
