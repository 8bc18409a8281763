"""The layer around attention as custom calls of the CPU: attention itself, over pages in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.kernels.native.library import Library
from rtp_jax.kernels.pages import KVGroup, KVPages, KVScales, StepInputs

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


class HeadNorms(NamedTuple):
    """Norms of each head's query and of its key, before they are turned."""

    query: Float[Array, "*layers head_dim"]
    key: Float[Array, "*layers head_dim"]
    layer: Int32[Array, ""] | int  # row of the factors, if they are stacked
    eps: float


def rope_kv(
    library: Library,
    projected: tuple[
        Float[Array, "tokens query_width"],
        Float[Array, "tokens kv_width"],
        Float[Array, "tokens kv_width"],
    ],
    kv: KVGroup,
    layer: Int32[Array, ""],
    step: StepInputs,
    *,
    cos: Float32[Array, "tokens half"],
    sin: Float32[Array, "tokens half"],
    norms: HeadNorms | None = None,
) -> tuple[Float[Array, "tokens heads head_dim"], KVGroup]:
    """Normalise each head if asked for, turn queries and keys, and write keys and values to pages.

    What `RMSNorm`, `rotate` and `write_kv` do one after the other, rounding where they do, for the
    `step.num_tokens` tokens that are no padding; the queries of padding are zero and its keys are
    not written.  Donated pages and scales are written in place.

    Args:
      library: a loaded library.
      projected: what the projections give for queries, keys and values, in one dtype, float32 or
        bfloat16.
      kv: pages, with scales if they are int8 or float8; `head_dim` is even and at most 512.
      layer: which layer of the group to write.
      step: `positions`, `sequence_of`, `page_table` and `num_tokens` say where tokens go.
      cos: of each token's angles.
      sin: of each token's angles.
      norms: factors, the layer they are for, and epsilon.

    Returns:
      The rotated queries in the dtype of the projections, and the group.
    """
    query, key, value = projected
    head_dim, empty = kv.pages.shape[5], jnp.zeros(0, jnp.float32)
    turned = (query.shape[0], query.shape[1] // head_dim, head_dim)
    scales = empty if kv.scales is None else kv.scales
    call = jax.ffi.ffi_call(
        library.target("rtp_rope_kv"),
        (
            jax.ShapeDtypeStruct(turned, query.dtype),
            jax.ShapeDtypeStruct(kv.pages.shape, kv.pages.dtype),
            jax.ShapeDtypeStruct(scales.shape, scales.dtype),
        ),
        input_output_aliases={7: 1} if kv.scales is None else {7: 1, 8: 2},
    )
    rotated, pages, scales = call(
        query,
        key,
        value,
        cos,
        sin,
        norms.query if norms else empty,
        norms.key if norms else empty,
        kv.pages,
        scales,
        jnp.asarray(layer, jnp.int32),
        jnp.asarray(norms.layer if norms else 0, jnp.int32),
        step.num_tokens,
        step.positions[0],
        step.sequence_of,
        step.page_table,
        eps=np.float32(norms.eps if norms else 0.0),
    )
    return rotated, KVGroup(pages, None if kv.scales is None else scales)


def rms_norm(
    library: Library,
    x: Float[Array, "rows features"],
    scale: Float[Array, "*layers features"],
    layer: Int32[Array, ""],
    rows: Int32[Array, ""],
    *,
    eps: float,
) -> Float[Array, "rows features"]:
    """Normalise the first `rows` rows as `RMSNorm` does; the others are zero.

    Args:
      library: a loaded library.
      x: float32 or bfloat16.
      scale: factors, float32 or bfloat16; of each layer if there are several.
      layer: which factors to use.
      rows: how many rows are no padding.
      eps: added to the mean square.
    """
    call = jax.ffi.ffi_call(library.target("rtp_rms_norm"), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(
        x,
        scale,
        jnp.asarray(layer, jnp.int32),
        jnp.asarray(rows, jnp.int32),
        eps=np.float32(eps),
    )
