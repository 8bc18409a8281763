"""The specification: what quantized matmul means, in jax.numpy.

Slow, obvious, runs anywhere.  Every other implementation is judged against this file, so it may
never be changed to agree with a kernel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.quantized_matmul.rounding import rounded
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from rtp_jax.quant.schemes import INT4_OFFSET


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
) -> Float[Array, "tokens outer"]:
    """Decode one layer of the weight to float32 and multiply by it all rows of `x`."""
    del rows
    x = rounded(x, weight.scheme) if weight.scheme.dynamic else x.astype(jnp.float32)
    return jnp.dot(x, numbers(weight, layer).T, precision=jax.lax.Precision.HIGHEST)


def numbers(weight: QuantizedArray, layer: Int32[Array, ""] | int) -> Float[Array, "outer inner"]:
    """Decode one layer of a weight in layout `rows` to float32, its columns as they are held."""
    assert weight.layout == ROWS, f"layout {weight.layout} is known only to its own kernel"
    values = weight.values[layer]
    if weight.scales is None:
        return values.astype(jnp.float32)
    if weight.scheme.bits == 4:
        pairs = jnp.stack([values & 15, values >> 4], axis=-1)
        values = pairs.reshape(weight.outer, weight.inner)
    scales = weight.scales[layer]
    groups = values.astype(jnp.float32).reshape(weight.outer, scales.shape[1], -1)
    if weight.zeros is not None:
        groups = groups - weight.zeros[layer].astype(jnp.float32)[..., None]
    elif weight.scheme.bits == 4:
        groups = groups - INT4_OFFSET
    return (groups * scales[..., None]).reshape(weight.outer, weight.inner)
