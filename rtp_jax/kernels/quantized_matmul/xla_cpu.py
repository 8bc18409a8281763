"""Products with float8 on a CPU, in XLA: decoded by arithmetic on bits.

XLA converts float8 on a CPU slowly.  But the bits of a float8_e4m3fn are those of a float16 that is
256 times smaller, with fewer places on either side, and float16 is converted by the processor:

    float8    s eeee mmm
    float16   s 0eeee mmm0000000

NaN alone would become a number; a checkpoint with NaN among its weights is not loaded.  Decoded
numbers and rounded activations have four significant bits, so bfloat16 holds them exactly.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt8

from rtp_jax.kernels.quantized_matmul import xla
from rtp_jax.kernels.quantized_matmul.rounding import round_rows, rounded
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import QuantizedArray

PLATFORMS = ("cpu",)
BEHIND = 256  # 2 ** (15 - 7): the exponents of float16 and of float8 begin that far apart


def obstacle(call: MatmulShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    if not call.scheme.floating:
        return f"it decodes float8 and the weight is {call.scheme.name}"
    return xla.obstacle(call)


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
) -> Float[Array, "tokens outer"]:
    """Multiply by one layer of a weight, all rows of `x` whatever `rows` says."""
    del rows
    assert weight.scales is not None
    tokens = x.shape[0]
    if tokens == 1:
        x = jnp.pad(x, ((0, xla.MIN_ROWS - 1), (0, 0)))
    bits = jax.lax.bitcast_convert_type(weight.values, jnp.uint8)  # before a layer is taken
    numbers = decoded(jax.lax.dynamic_index_in_dim(bits, layer, keepdims=False))
    scales = jax.lax.dynamic_index_in_dim(weight.scales, layer, keepdims=False)
    if weight.scheme.group is None:
        values, scale = round_rows(x, weight.scheme)
        product = xla.dot(values.astype(x.dtype), numbers.astype(x.dtype)) * scale * scales[:, 0]
    else:
        grouped = numbers.reshape(*scales.shape, -1) * scales[..., None]
        x_numbers = rounded(x, weight.scheme).astype(x.dtype)
        product = xla.dot(x_numbers, grouped.reshape(numbers.shape).astype(x.dtype))
    return product[:tokens]


def decoded(bits: UInt8[Array, "outer inner"]) -> Float32[Array, "outer inner"]:
    """Convert the bits of float8_e4m3fn to float32."""
    wide = bits.astype(jnp.uint16)
    halves = (wide & 0x80) << 8 | (wide & 0x7F) << 7
    return jax.lax.bitcast_convert_type(halves, jnp.float16).astype(jnp.float32) * BEHIND
