"""Paged attention in plain XLA: tiles of queries walk over blocks of keys, live pages only.

Decoding is bound by reading KV, so nothing may be gathered that no query sees.  A tile is one
decoding token, or up to `CHUNK_ROWS` consecutive tokens of one prefilling sequence.  Each tile
walks over the pages of its own sequence, `BLOCK_KEYS` keys at a time, and keeps a running softmax:

    out[row] = sum over blocks of  softmax(q K^T) V     from the first block that the window shows
                                                        to the block of the last row

Both loops have dynamic bounds: a step without chunks runs no chunk tile, a short sequence walks
over few blocks.  No tile holds two sequences and blocks start at multiples of `BLOCK_KEYS`, so
what a token computes does not depend on what shares its batch.  Measured on 2 cores of a Zen 5,
a walk for each sequence costs at most a third more than a batch of equally long sequences, and
wins as soon as their lengths differ.

Source: Milakov & Gimelshein 2018 (arXiv:1805.02867), algorithm 3; Dao 2023 (arXiv:2307.08691).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Num

from rtp_jax.kernels.paged_attention.shape import AttentionShape
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs, from_bits

PLATFORMS = ("cpu", "cuda")
BLOCK_KEYS = 128  # larger ones gain nothing for long contexts and waste more on short ones
CHUNK_ROWS = 64
MASKED = -1e30  # finite: a block without a visible key must not make NaN


def obstacle(call: AttentionShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for {' and '.join(PLATFORMS)} and the target is {call.platform}"
    return None


class Tile(NamedTuple):
    """Consecutive tokens of one sequence; rows past its end repeat the last position."""

    first: Int32[Array, ""]  # token in the step
    position: Int32[Array, " rows"]
    valid: Bool[Array, " rows"]
    pages: Int32[Array, " width"]


class Call(NamedTuple):
    """What all tiles of a call share."""

    pages: KVPages
    layer: Int32[Array, ""]
    scale: float
    window: Int32[Array, ""] | int | None
    soft_cap: float | None
    sinks: Float[Array, " heads"] | None
    scales: KVScales | None


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
    tokens = query.shape[0]
    chunk_rows = min(CHUNK_ROWS, tokens)
    call = Call(pages, layer, scale, sliding_window, soft_cap, sinks, scales)
    padded = jnp.pad(query, ((0, chunk_rows), (0, 0), (0, 0)))  # a tile may reach past the end
    out = jnp.zeros_like(padded)
    count = step.query_count
    decoding = (count == 1).astype(jnp.int32)
    chunks = jnp.where(count > 1, -(-count // chunk_rows), 0)
    for rows, tiles_of in ((1, decoding), (chunk_rows, chunks)):
        out = _attend_in_tiles(out, padded, step, tiles_of, rows, call)
    return out[:tokens]


def _attend_in_tiles(
    out: Float[Array, "padded heads head_dim"],
    query: Float[Array, "padded heads head_dim"],
    step: StepInputs,
    tiles_of: Int32[Array, " sequences"],
    rows: int,
    call: Call,
) -> Float[Array, "padded heads head_dim"]:
    """Fill in the tokens of every sequence that has tiles of `rows` rows."""
    ends = jnp.cumsum(tiles_of)

    def attend(index: Int32[Array, ""], out: Num[Array, "padded heads head_dim"]):
        sequence = jnp.sum(ends <= index)
        before = (index - ends[sequence] + tiles_of[sequence]) * rows  # tokens in earlier tiles
        first = step.query_start[sequence] + before
        offset = jnp.arange(rows)
        left = step.query_count[sequence] - before
        position = step.positions[0, first] + jnp.minimum(offset, left - 1)
        tile = Tile(first, position, offset < left, step.page_table[sequence])
        mine = jax.lax.dynamic_slice_in_dim(query, first, rows)
        old = jax.lax.dynamic_slice_in_dim(out, first, rows)
        new = _walk(mine, tile, call)
        new = jnp.where(tile.valid[:, None, None], new, old)
        return jax.lax.dynamic_update_slice_in_dim(out, new, first, 0)

    return jax.lax.fori_loop(0, ends[-1], attend, out)


def _walk(
    query: Float[Array, "rows heads head_dim"], tile: Tile, call: Call
) -> Float[Array, "rows heads head_dim"]:
    """Attend from a tile to the blocks of keys that it sees, with a running softmax."""
    (rows, heads, head_dim), (kv_heads, page_size) = query.shape, call.pages.shape[3:5]
    group = heads // kv_heads
    block_pages = max(1, min(BLOCK_KEYS // page_size, tile.pages.size))
    block = block_pages * page_size
    table = jnp.pad(tile.pages, (0, -tile.pages.size % block_pages))
    position = jnp.repeat(tile.position, group)[:, None]  # [rows * group, 1]
    begin = 0 if call.window is None else jnp.maximum(tile.position[0] - call.window + 1, 0)
    # bfloat16 queries are multiplied as such with bfloat16, int8 and float8; the rest as float32.
    dtype = query.dtype if call.pages.dtype.itemsize == 1 else _wider(query, call.pages)
    rotated = query.reshape(rows, kv_heads, group, head_dim).swapaxes(0, 1)
    rotated = rotated.reshape(kv_heads, rows * group, head_dim).astype(dtype)

    def advance(index, state):
        high, total, mixed = state
        ids = jax.lax.dynamic_slice_in_dim(table, index * block_pages, block_pages)
        kv = from_bits(call.pages[ids, call.layer]).transpose(1, 2, 0, 3, 4)
        key, value = kv.reshape(2, kv_heads, block, head_dim).astype(dtype)
        distance = position - (index * block + jnp.arange(block))  # [rows * group, block]
        live = distance[-1] >= 0  # keys that belong to the sequence
        visible = distance >= 0
        if call.window is not None:
            visible &= distance < call.window
        # Pages are recycled: past the end of a sequence lies anything, and 0 * NaN is NaN.
        value = jnp.where(live[:, None], value, 0)
        score = jnp.einsum("hrd,hkd->hrk", rotated, key, preferred_element_type=jnp.float32)
        score *= call.scale
        key_scale = value_scale = None
        if call.scales is not None:
            scales = call.scales[ids, call.layer].transpose(1, 2, 0, 3).reshape(2, kv_heads, 1, -1)
            key_scale, value_scale = jnp.where(live, scales, 0)
            score *= key_scale
        if call.soft_cap is not None:
            score = call.soft_cap * jnp.tanh(score / call.soft_cap)
        score = jnp.where(visible, score, MASKED)
        new_high = jnp.maximum(high, score.max(-1))
        weight = jnp.where(visible, jnp.exp(score - new_high[..., None]), 0)
        decay = jnp.exp(high - new_high)
        total = total * decay + weight.sum(-1)
        if value_scale is not None:
            weight *= value_scale
        part = jnp.einsum(
            "hrk,hkd->hrd", weight.astype(dtype), value, preferred_element_type=jnp.float32
        )
        return new_high, total, mixed * decay[..., None] + part

    if call.sinks is None:
        high, total = jnp.full((kv_heads, rows * group), MASKED, jnp.float32), 0.0
    else:  # a key without a value was seen before the first block
        high = jnp.tile(call.sinks.astype(jnp.float32).reshape(kv_heads, group), (1, rows))
        total = 1.0
    state = high, jnp.full_like(high, total), jnp.zeros((*high.shape, head_dim), jnp.float32)
    bounds = begin // block, tile.position[-1] // block + 1
    _, total, mixed = jax.lax.fori_loop(*bounds, advance, state)
    out = (mixed / total[..., None]).reshape(kv_heads, rows, group, head_dim)
    return out.swapaxes(0, 1).reshape(rows, heads, head_dim).astype(query.dtype)


def _wider(query: Num[Array, "..."], pages: KVPages) -> jnp.dtype:
    """The dtype that holds both queries and what pages hold."""
    return jnp.promote_types(query.dtype, from_bits(pages[:0, 0, 0, 0, 0, 0]).dtype)
