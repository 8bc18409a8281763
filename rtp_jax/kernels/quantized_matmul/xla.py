"""Quantized matmul in plain XLA, for both platforms: what runs where no kernel can.

`plain`, `int8_dynamic` and `fp8` are one dot of operands as they are stored; a GPU has a fast path
for each of them, and the CPU for the first two.  Weight-only schemes and `fp8_block` are decoded
first, which on the CPU writes the decoded matrix to memory at every call: correct, and no faster
than plain.

A bfloat16 or int8 dot of one row leaves the CPU's fast path and takes longer than one of eight, so
a lone row is padded.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

from rtp_jax.kernels.quantized_matmul.rounding import round_rows, rounded
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from rtp_jax.quant.schemes import INT4_OFFSET

PLATFORMS = ("cpu", "cuda")
MIN_ROWS = 8


def obstacle(call: MatmulShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    if call.layout != ROWS:
        return f"it reads the layout {ROWS!r} and the weight has {call.layout!r}"
    return None


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
) -> Float[Array, "tokens outer"]:
    """Multiply by one layer of a weight, all rows of `x` whatever `rows` says."""
    del rows
    tokens = x.shape[0]
    if tokens == 1:
        x = jnp.pad(x, ((0, MIN_ROWS - 1), (0, 0)))
    values = jax.lax.dynamic_index_in_dim(weight.values, layer, keepdims=False)
    if weight.scales is None:
        return dot(x, values.astype(x.dtype))[:tokens]
    scales = jax.lax.dynamic_index_in_dim(weight.scales, layer, keepdims=False)
    if weight.scheme.dynamic and weight.scheme.group is None:
        values_of_x, scale = round_rows(x, weight.scheme)
        sums = jnp.float32 if weight.scheme.floating else jnp.int32
        product = dot(values_of_x, values, sums).astype(jnp.float32) * scale * scales[:, 0]
    elif weight.scheme.dynamic:
        numbers = _grouped(values, scales, None).astype(x.dtype)
        product = dot(rounded(x, weight.scheme).astype(x.dtype), numbers)
    elif weight.scheme.bits == 8:  # int8 is exact in bfloat16, so the scale can wait
        product = dot(x, values.astype(x.dtype)) * scales[:, 0]
    else:
        zeros = weight.zeros
        if zeros is not None:
            zeros = jax.lax.dynamic_index_in_dim(zeros, layer, keepdims=False)
        product = dot(x, _decode_pairs(values, scales, zeros).astype(x.dtype))
    return product[:tokens]


def dot(
    x: Num[Array, "tokens inner"],
    values: Num[Array, "outer inner"],
    sums: jnp.dtype | type = jnp.float32,
) -> Num[Array, "tokens outer"]:
    """Multiply by a transposed matrix, summed in `sums`."""
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, values, contract, preferred_element_type=sums)


def _decode_pairs(
    values: Num[Array, "outer pairs"],
    scales: Float[Array, "outer groups"],
    zeros: Num[Array, "outer groups"] | None,
) -> Float[Array, "outer inner"]:
    """Decode int4 to float32: whoever rounds it does so once, after its scale."""
    pairs = jnp.stack([values & 15, values >> 4], axis=-1).astype(jnp.int8)
    if zeros is None:
        return _grouped(pairs - jnp.int8(INT4_OFFSET), scales, None)
    return _grouped(pairs, scales, zeros.astype(jnp.int8))


def _grouped(
    values: Num[Array, "outer ..."],
    scales: Float[Array, "outer groups"],
    zeros: Num[Array, "outer groups"] | None,
) -> Float[Array, "outer inner"]:
    """Take zero points from the values of each group, and multiply by its scale."""
    outer, groups = scales.shape
    split = values.reshape(outer, groups, -1)
    if zeros is not None:
        split = split - zeros[..., None]
    return (split.astype(jnp.float32) * scales[..., None]).reshape(outer, -1)
