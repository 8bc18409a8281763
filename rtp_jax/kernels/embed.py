"""Embed: rows of a table by their ids, whatever the table's encoding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import linear as native
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray


def embed(
    ids: Int32[Array, " tokens"], table: QuantizedArray, *, dtype: jnp.dtype
) -> Float[Array, "tokens inner"]:
    """Look rows up in `table`, a stack of one matrix [vocab, inner], as numbers of `dtype`."""
    if table.layout == NATIVE:
        return native.embed(ids, table, dtype)
    values = table.values[0][ids]
    if table.scales is None:
        return values.astype(dtype)
    assert table.scheme.bits == 8, "a head has one scale for each row"
    return (values.astype(jnp.float32) * table.scales[0][ids]).astype(dtype)
