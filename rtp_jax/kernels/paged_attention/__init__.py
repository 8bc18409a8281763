"""Paged attention: the tokens of a step attend to the KV pages of their sequences.

Read `reference.py` for what it means, then `xla_cpu.py` for how it is fast.  Every kernel file has
the same names: `obstacle`, `paged_attention` (see `shape.py`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.choice import choose
from rtp_jax.kernels.paged_attention import mosaic_gpu, native_cpu, reference, xla_cpu
from rtp_jax.kernels.paged_attention.shape import (
    SCALES,
    SINKS,
    SLIDING_WINDOW,
    SOFT_CAP,
    AttentionShape,
)
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs

KERNELS = {  # best first
    "mosaic_gpu": mosaic_gpu,
    "native_cpu": native_cpu,
    "xla_cpu": xla_cpu,
}


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
    platform: str,
    implementation: str = "auto",
) -> Float[Array, "tokens heads head_dim"]:
    """Let each new token attend to its sequence: every token before it, and itself.

    One call serves prefill and decode: a decoding sequence brings one token, a prefilling one a
    whole chunk.

    Args:
      query: rotated queries, float32 or bfloat16.
      pages: KV pages that already hold this step's keys and values.  Consecutive query heads
        share a KV head, so `heads` must be a multiple of `kv_heads`.
      layer: which layer of `pages` to read.
      step: `positions` count tokens from 0; `page_table` holds page ids, 0 where unused.
      scale: factor on `query . key`, usually `head_dim ** -0.5`.
      sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None: all.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`; None: they stay.
      sinks: for each head the score of one more key, which has no value; None: there is none.
      scales: factors on what `pages` hold, of pages that were written with them.
      platform: what the program is compiled for, "cpu" or "cuda".
      implementation: "auto", "reference" or a name in `KERNELS`.

    Returns:
      Weighted values in the dtype of `query`; scores and softmax are float32.  Rows of padding
      tokens are finite and mean nothing.

    Raises:
      KernelError: the implementation asked for does not exist or cannot serve.

    Source:
      Kwon et al. 2023, PagedAttention (arXiv:2309.06180), section 4.1.
      Ainslie et al. 2023, Grouped-query attention (arXiv:2305.13245), section 2.2.
      Xiao et al. 2023, attention sinks (arXiv:2309.17453), section 3.
    """
    features = {
        SLIDING_WINDOW: sliding_window,
        SOFT_CAP: soft_cap,
        SINKS: sinks,
        SCALES: scales,
    }
    call = AttentionShape(
        platform=platform,
        dtype=jnp.dtype(query.dtype),
        storage=jnp.dtype(pages.dtype),
        head_dim=query.shape[2],
        page_size=pages.shape[4],
        heads=query.shape[1],
        kv_heads=pages.shape[3],
        features=frozenset(name for name, value in features.items() if value is not None),
    )
    obstacles = {name: kernel.obstacle(call) for name, kernel in KERNELS.items()}
    name = choose("paged_attention", obstacles, implementation)
    chosen = reference if name == "reference" else KERNELS[name]
    return chosen.paged_attention(
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
