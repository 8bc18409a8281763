"""Quantized matmul on Hopper: what is done around the kernel.

Read `mosaic_plan.py` for how the work is divided and `mosaic_stream.py` for the kernel.  Here `x`
is rounded or reordered, parts of sums are added and scaled; XLA fuses that with what is around it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Num

from rtp_jax.kernels import compat
from rtp_jax.kernels.quantized_matmul import mosaic_plan
from rtp_jax.kernels.quantized_matmul.mosaic_decode import BIAS
from rtp_jax.kernels.quantized_matmul.mosaic_plan import GROUP, Plan, Tiling
from rtp_jax.kernels.quantized_matmul.rounding import round_rows
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.kernels.tuned import key_of, tuned
from rtp_jax.late_imports import late
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from rtp_jax.quant.schemes import Scheme

mosaic_sums = late("rtp_jax.kernels.quantized_matmul.mosaic_sums")
mosaic_stream = late("rtp_jax.kernels.quantized_matmul.mosaic_stream")

PLATFORMS = ("cuda",)
KNOWN = ", ".join(map(str, mosaic_plan.GROUPS))


def obstacle(call: MatmulShape) -> str | None:
    """Say in words why this kernel cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    if not compat.HAS_MOSAIC_GPU:
        return "it needs jax 0.11"
    if not call.scheme.is_quantized:
        return "plain weights are multiplied by XLA"
    if call.layout != ROWS:
        return f"it reads the layout {ROWS!r} and the weight has {call.layout!r}"
    if call.scheme.bits == 4 and call.scheme.group is None:
        return f"its int4 has groups of {KNOWN}, and the weight has none"
    if call.scheme.group not in (None, *mosaic_plan.GROUPS):
        return f"its groups have {KNOWN} numbers and those of the weight {call.scheme.group}"
    if call.dtype != jnp.bfloat16 and not call.scheme.dynamic:
        return f"wgmma multiplies bfloat16 and x is {call.dtype}"
    if call.outer % mosaic_plan.ROWS or call.inner % GROUP:
        return (
            f"it reads {mosaic_plan.ROWS} rows of {GROUP} numbers at a time and the weight is "
            f"[{call.outer}, {call.inner}]"
        )
    return None


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
    tiling: Tiling | None = None,
    interpret: object = None,
) -> Float[Array, "tokens outer"]:
    """Multiply by one layer of a weight, which is not copied; tiles of tokens behind `rows` are 0.

    `tiling` replaces the tuned one or the default; `interpret`, an `InterpretGPUParams`, simulates
    on the CPU.
    """
    tokens, inner = x.shape
    scheme = weight.scheme
    sizes = {"outer": weight.outer, "inner": inner}
    tiling = tiling or _tuned(scheme, tokens, sizes)
    tiling = tiling or mosaic_plan.default_tiling(scheme, tokens=tokens, **sizes)
    padded = -(-tokens // tiling.tokens) * tiling.tokens
    plan = mosaic_plan.plan(tiling, scheme.bits, tokens=padded, **sizes)
    job = mosaic_sums.Job(scheme, tiling, plan, interpret)
    x_scales = None
    if scheme.dynamic:
        x, x_scales = round_rows(x, scheme)
    numbers = (layer, tokens if rows is None else rows, BIAS)
    below = ((0, padded - tokens), (0, 0))
    operands = mosaic_stream.Operands(
        jnp.pad(_by_planes(x, job.planes, mosaic_plan.group_size(scheme)), below),
        _words(weight, job.planes),
        weight.scales,
        *(jnp.int32(number).reshape(1) for number in numbers),
        zeros=weight.zeros,
        x_scales=None if x_scales is None or scheme.group is None else jnp.pad(x_scales, below).T,
    )
    product = _add_parts(mosaic_stream.stream(operands, job), tiling, plan)[:tokens]
    if scheme.group is None:  # then no scale was needed before
        product *= jax.lax.dynamic_index_in_dim(weight.scales, layer, keepdims=False)[:, 0]
        product *= 1 if x_scales is None else x_scales
    if rows is not None and plan.token_tiles > 1:
        tile_start = np.arange(tokens)[:, None] // tiling.tokens * tiling.tokens
        product = jnp.where(tile_start < rows, product, 0)
    return product


def _by_planes(
    x: Num[Array, "tokens inner"], planes: int, group: int
) -> Num[Array, "tokens inner"]:
    """Reorder the numbers of every group: those at place 0 of a word first, then at place 1, ..."""
    if planes == 1:
        return x
    tokens, inner = x.shape
    words = x.reshape(tokens, inner // group, group // planes, planes)
    return words.swapaxes(2, 3).reshape(tokens, inner)


def _words(weight: QuantizedArray, planes: int) -> Num[Array, "layers outer words"]:
    """See bytes as words of 16 bits, which costs nothing."""
    if planes == 1:
        return weight.values
    layers, outer, count = weight.values.shape
    pairs = weight.values.reshape(layers, outer, count // 2, 2)
    return jax.lax.bitcast_convert_type(pairs, jnp.int16)


def _add_parts(
    parts: Num[Array, "parts outer tokens"], tiling: Tiling, plan: Plan
) -> Float[Array, "tokens outer"]:
    """Add the parts that a plan uses, in their order."""
    count, outer, tokens = parts.shape
    if count == 1:
        return parts[0].T.astype(jnp.float32)
    tiles = parts.reshape(count, plan.outer_tiles, tiling.outer, plan.token_tiles, tiling.tokens)
    used = np.swapaxes(plan.used(), 1, 2)[:, :, None, :, None]
    total = jnp.where(used, tiles, 0).sum(axis=0).reshape(outer, tokens)
    return total.T.astype(jnp.float32)


def _tuned(scheme: Scheme, tokens: int, sizes: dict[str, int]) -> Tiling | None:
    """Look up a tiling that was measured to be better than the default."""
    found = tuned(
        "quantized_matmul", key_of(scheme=scheme.name, group=scheme.group, tokens=tokens, **sizes)
    )
    return None if found is None else Tiling(*found)
