"""Quantized matmul in C++, for weights packed as its blocks: see `kernels/native/matmul.h`."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.linear import linear
from rtp_jax.kernels.native.packing import packing_obstacle
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray

PLATFORMS = ("cpu",)


def obstacle(call: MatmulShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    if call.layout != NATIVE:
        return f"it reads the layout {NATIVE!r} and the weight has {call.layout!r}"
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it multiplies float32 and bfloat16, not {jnp.dtype(call.dtype).name}"
    return packing_obstacle(call.scheme, call.inner, call.dtype) or library.obstacle()


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
) -> Float[Array, "tokens outer"]:
    """Multiply by one packed matrix; rows of `x` that do not matter come out as zeros.

    Float32 is multiplied as such.  int4 rounds `x` to int8 for each token and group, so its terms
    err by |weight| * max |x of the group| / 254 more than those of the reference.
    """
    (product,) = linear(x, [weight], layer, rows=rows, dtype=jnp.dtype(jnp.float32))
    return product
