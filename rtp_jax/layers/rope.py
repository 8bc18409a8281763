"""Rotary embedding: turn pairs of query and key dimensions by an angle that grows with position.

The pair of dimension i is (i, i + head_dim / 2), as in every Hugging Face checkpoint.  How fast
each pair turns is decided in `rope_frequencies.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.layers.rope_frequencies import Rope


class Rotation(NamedTuple):
    """How far each token of a step is turned; the same in all layers, so computed once."""

    cos: Float32[Array, "tokens half"]
    sin: Float32[Array, "tokens half"]


def rotation(rope: Rope, positions: Int32[Array, " tokens"]) -> Rotation:
    """Compute the angles of a step's tokens, scaled by the attention factor."""
    angle = positions[:, None].astype(jnp.float32) * jnp.asarray(rope.frequencies(), jnp.float32)
    factor = rope.scaling.attention_factor
    return Rotation(jnp.cos(angle) * factor, jnp.sin(angle) * factor)


def rotate(
    x: Float[Array, "tokens heads head_dim"], by: Rotation
) -> Float[Array, "tokens heads head_dim"]:
    """Turn every head of a token by the token's angles, in float32."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[:, None], by.sin[:, None]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)
