"""Paged attention in C++ on the CPU, through XLA's foreign function interface.

It walks over the live pages where they lie: what XLA would gather, widen and transpose is read once
and stays in the cache of one core.  Read `native/attention.h` for the algorithm, `native/levels.py`
for the processors it is compiled for.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import attention, library
from rtp_jax.kernels.paged_attention.shape import AttentionShape
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs

PLATFORMS = ("cpu",)
DTYPES = ("float32", "bfloat16")
STORAGE = ("float32", "uint16", "int8", "uint8")
MAX_HEAD_DIM = 256  # kMaxHeadDim of attention.h


def obstacle(call: AttentionShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    if jnp.dtype(call.dtype).name not in DTYPES:
        return f"it takes queries of {' and '.join(DTYPES)}, not {jnp.dtype(call.dtype).name}"
    if jnp.dtype(call.storage).name not in STORAGE:
        return f"it reads pages of {', '.join(STORAGE)}, not {jnp.dtype(call.storage).name}"
    if call.head_dim > MAX_HEAD_DIM:
        return f"its head_dim is at most {MAX_HEAD_DIM}, not {call.head_dim}"
    return library.obstacle()


def paged_attention(
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
    """Let each new token attend to its sequence: every token before it, and itself."""
    loaded = library.loaded()
    assert loaded is not None, "asked for although there is an obstacle"
    return attention.attention(
        loaded,
        query,
        pages,
        layer,
        step,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        scales=scales,
    )
