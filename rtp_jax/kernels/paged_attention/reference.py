"""The specification: what paged attention means, in jax.numpy.

Slow, obvious, runs anywhere.  Every other implementation is judged against this file, so it may
never be changed to agree with a kernel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs, from_bits


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
    """Let each new token attend to its sequence, one full copy of that sequence for each token."""
    heads, kv_heads = query.shape[1], pages.shape[3]
    pages_of_token = step.page_table[step.sequence_of]  # [tokens width]
    kv = from_bits(pages[pages_of_token, layer]).astype(jnp.float32)
    if scales is not None:
        kv *= scales[pages_of_token, layer][..., None]
    kv = jnp.einsum("twchod->cthwod", kv)  # c: key or value, w: page, o: offset in the page
    kv = kv.reshape(*kv.shape[:3], -1, kv.shape[-1])  # [2 tokens kv_heads keys head_dim]
    key, value = jnp.repeat(kv, heads // kv_heads, axis=2)

    scores = jnp.einsum("thd,thkd->thk", query.astype(jnp.float32), key) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    distance = step.positions[0][:, None] - jnp.arange(key.shape[2])
    visible = distance >= 0
    if sliding_window is not None:
        visible &= distance < sliding_window
    scores = jnp.where(visible[:, None, :], scores, -jnp.inf)
    if sinks is not None:  # one more score for each head, of a key without a value
        sink = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None], (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, sink], axis=2)
    weights = jax.nn.softmax(scores, axis=-1)[:, :, : key.shape[2]]
    # Pages are recycled: past the end of a sequence lies anything, and 0 * NaN is NaN.
    value = jnp.where((distance >= 0)[:, None, :, None], value, 0)
    return jnp.einsum("thk,thkd->thd", weights, value).astype(query.dtype)
