"""How a dynamic scheme rounds activations: each token, or group, by its largest number."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from rtp_jax.quant.schemes import FP8_MAX, INT8_MAX, Scheme


def round_rows(
    x: Float[Array, "tokens inner"], scheme: Scheme
) -> tuple[Num[Array, "tokens inner"], Float[Array, "tokens groups"]]:
    """Round each row to int8 or float8, halves to even, and give the float32 scales to undo it.

    A scheme without groups has one scale for a row.  A group of zeros has scale 0.
    """
    tokens, inner = x.shape
    numbers = x.astype(jnp.float32).reshape(tokens, -1, scheme.group or inner)
    largest = FP8_MAX if scheme.floating else INT8_MAX
    scale = jnp.abs(numbers).max(axis=2, keepdims=True) / largest
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    # A scale that was rounded down lifts the largest number by so little that it is rounded back.
    values = (numbers * inverse).reshape(tokens, inner)
    if scheme.floating:
        return values.astype(jnp.float8_e4m3fn), scale[..., 0]
    return jnp.round(values).astype(jnp.int8), scale[..., 0]


def rounded(x: Float[Array, "tokens inner"], scheme: Scheme) -> Float[Array, "tokens inner"]:
    """Give the float32 numbers that rounding leaves."""
    values, scale = round_rows(x, scheme)
    groups = values.astype(jnp.float32).reshape(*scale.shape, -1) * scale[..., None]
    return groups.reshape(x.shape)
