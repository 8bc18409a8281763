"""The layer around attention as custom calls of the CPU: attention itself, over pages in place."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native.library import Library
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs

UNLIMITED = np.iinfo(np.int32).max  # a window that hides nothing


def attention(
    library: Library,
    query: Float[Array, "tokens heads head_dim"],
    pages: KVPages,
    layer: Int32[Array, ""],
    step: StepInputs,
    *,
    scale: float,
    sliding_window: Int32[Array, ""] | int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    scales: KVScales | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Call `rtp_attention` of a library; arguments and result as in `paged_attention`.

    Rows of tokens without a sequence are zero.
    """
    call = jax.ffi.ffi_call(
        library.target("rtp_attention"), jax.ShapeDtypeStruct(query.shape, query.dtype)
    )
    empty = jnp.zeros(0, jnp.float32)
    return call(
        query,
        pages,
        empty if scales is None else scales,
        empty if sinks is None else sinks.astype(jnp.float32),
        jnp.asarray(layer, jnp.int32),
        step.num_tokens,
        jnp.asarray(UNLIMITED if sliding_window is None else sliding_window, jnp.int32),
        step.positions[0],
        step.page_table,
        step.query_start,
        step.query_count,
        scale=np.float32(scale),
        soft_cap=np.float32(soft_cap or 0.0),
    )
