"""How a dynamic scheme rounds activations: each token by its own largest number."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

INT8_MAX = 127


def round_rows(
    x: Float[Array, "tokens inner"],
) -> tuple[Int8[Array, "tokens inner"], Float[Array, "tokens 1"]]:
    """Round each row to int8, halves to even, with a float32 scale that gives the numbers back.

    A row of zeros has scale 0.
    """
    numbers = x.astype(jnp.float32)
    scale = jnp.abs(numbers).max(axis=1, keepdims=True) / INT8_MAX
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    # A scale that was rounded down can lift the largest number above 127 by less than a half.
    return jnp.round(numbers * inverse).astype(jnp.int8), scale
