"""Products with packed weights, as calls that XLA makes.

`matmul.h` says what is computed and how exactly; `kernels/linear` who calls this.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.packing import block_bytes, scheme_number
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray

EPILOGUES = {"none": 0, "add": 1, "silu_mul": 2}
MAX_WEIGHTS = 8  # in one call, as in `matmul.h`


def linear(
    x: Float[Array, "tokens inner"],
    weights: Sequence[QuantizedArray],
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | int | None = None,
    epilogue: str = "none",
    residual: Float[Array, "tokens outer"] | None = None,
    dtype: jnp.dtype,
    level: str | None = None,
) -> tuple[Float[Array, "tokens _"], ...]:
    """Multiply `x` with each of `weights[layer]`, transposed, then do the epilogue in float32.

    Args:
      x: float32 or bfloat16.  Products of float32 are slower and as exact as that; what becomes of
        them is in `matmul.h`.
      weights: packed, at most `MAX_WEIGHTS`, of one scheme.
      layer: which matrix of each; clamped.
      rows: how many leading rows matter, and how many are worked on; the others come out as zeros.
      epilogue: "none"; "add": `residual` is added; "silu_mul": silu(first) * second is returned.
      residual: float32 or bfloat16.
      dtype: of the results, float32 or bfloat16.
      level: of the library that computes, for comparisons; None: the best.

    Returns:
      One result for each weight, or one for the epilogue.
    """
    found = library.loaded(level)
    assert found is not None, "what packed the weights had a library"
    assert len(weights) <= MAX_WEIGHTS
    assert (residual is not None) == (epilogue == "add")
    (tokens, inner), scheme = x.shape, weights[0].scheme
    for weight in weights:
        assert (weight.layout, weight.scheme, weight.inner) == (NATIVE, scheme, inner)
    produced = weights[:1] if epilogue == "silu_mul" else weights
    results = [jax.ShapeDtypeStruct((tokens, one.outer), dtype) for one in produced]
    call = jax.ffi.ffi_call(found.target("rtp_linear"), results)
    rows = jnp.int32(tokens if rows is None else rows)
    added = [] if residual is None else [residual]
    stored = _plain_dtype(weights[0])
    return tuple(
        call(
            x,
            jnp.int32(layer),
            rows,
            *added,
            *(weight.values for weight in weights),
            scheme=np.int64(scheme_number(scheme, stored)),
            epilogue=np.int64(EPILOGUES[epilogue]),
        )
    )


def embed(
    ids: Int32[Array, " tokens"], table: QuantizedArray, dtype: jnp.dtype
) -> Float[Array, "tokens inner"]:
    """Look rows up in a packed stack of one matrix [vocab, inner]; ids beyond it are clamped."""
    found = library.loaded()
    assert found is not None, "what packed the table had a library"
    assert table.layout == NATIVE
    shape = (ids.shape[0], table.inner)
    call = jax.ffi.ffi_call(found.target("rtp_embed"), jax.ShapeDtypeStruct(shape, dtype))
    number = scheme_number(table.scheme, _plain_dtype(table))
    return call(ids, table.values, scheme=np.int64(number), outer=np.int64(table.outer))


def _plain_dtype(weight: QuantizedArray) -> np.dtype:
    """Tell the dtype of packed numbers by the size of their blocks."""
    bfloat16, float32 = np.dtype(jnp.bfloat16), np.dtype(np.float32)
    size = weight.values.shape[-1]
    return bfloat16 if size == block_bytes(weight.scheme, weight.inner, bfloat16) else float32
