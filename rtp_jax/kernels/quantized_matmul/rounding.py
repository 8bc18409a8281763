"""How a dynamic scheme rounds activations: each token by its own largest number."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from rtp_jax.quant.schemes import FP8_MAX, INT8_MAX, Scheme


def round_rows(
    x: Float[Array, "tokens inner"], scheme: Scheme
) -> tuple[Num[Array, "tokens inner"], Float[Array, "tokens 1"]]:
    """Round each row to int8 or float8, halves to even, and give the float32 scales to undo it.

    A row of zeros has scale 0.
    """
    numbers = x.astype(jnp.float32)
    largest = FP8_MAX if scheme.floating else INT8_MAX
    scale = jnp.abs(numbers).max(axis=1, keepdims=True) / largest
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    # A scale that was rounded down lifts the largest number by so little that it is rounded back.
    values = numbers * inverse
    if scheme.floating:
        return values.astype(jnp.float8_e4m3fn), scale
    return jnp.round(values).astype(jnp.int8), scale
