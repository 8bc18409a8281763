"""Embed: rows of a table by their ids, whatever the table's encoding."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import linear as native
from rtp_jax.kernels.quantized_matmul.reference import numbers
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray


def embed(
    ids: Int32[Array, " tokens"], table: QuantizedArray, *, dtype: jnp.dtype
) -> Float[Array, "tokens inner"]:
    """Look rows up in `table`, a stack of one matrix [vocab, inner], as numbers of `dtype`."""
    if table.layout == NATIVE:
        return native.embed(ids, table, dtype)
    values, scales = table.values[0][ids], None if table.scales is None else table.scales[0][ids]
    stack = None if scales is None else scales[None]
    rows = dataclasses.replace(table, values=values[None], scales=stack, outer=len(ids))
    return numbers(rows, 0).astype(dtype)
