"""The contract of everything paged: how KV lies in memory, and what a step knows about it.

Read next: `paged_attention/reference.py`.

All layers of one KV group share one array.  A page is one contiguous byte range of it:

    pages[page, layer, 0 = key | 1 = value, kv_head, offset, :]

Position p of a sequence lies in page `page_table[sequence, p // page_size]` at offset
`p % page_size`.  Page 0 is the null page: padding is written there and nobody reads it.  bfloat16
is stored as uint16 bits, because jax 0.10 on a CPU widens a whole bfloat16 array to update a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Num

KVPages = Num[Array, "pages layers 2 kv_heads page_size head_dim"]


class StepInputs(NamedTuple):
    """Which token of a step belongs to which sequence, and where the KV of each sequence lies.

    The tokens of all sequences lie end to end: sequence s brings the tokens
    `query_start[s] : query_start[s] + query_count[s]`, which stand at consecutive positions.
    Sequences are packed to the front without gaps; the padding behind them has `query_count` 0.
    """

    positions: Int32[Array, "axes tokens"]  # from 0; one axis for text, three for M-RoPE
    sequence_of: Int32[Array, " tokens"]  # row of page_table; 0 for padding tokens
    num_tokens: Int32[Array, ""]  # tokens before the padding
    page_table: Int32[Array, "sequences width"]  # page ids, 0 where unused
    query_start: Int32[Array, " sequences"]
    query_count: Int32[Array, " sequences"]

    def kv_length(self) -> Int32[Array, " sequences"]:
        """Tokens that each sequence has in its pages after this step's are written."""
        last = self.query_start + jnp.maximum(self.query_count, 1) - 1
        return jnp.where(self.query_count > 0, self.positions[0, last] + 1, 0)


def storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which pages hold numbers of `dtype`."""
    return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 else jnp.dtype(dtype)


def to_bits(x: Num[Array, "*shape"], storage: jnp.dtype) -> Num[Array, "*shape"]:
    """Encode numbers as pages store them."""
    if storage == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(storage)


def from_bits(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """Decode what pages store into numbers: uint16 is bfloat16, anything else is itself."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def write_kv(
    pages: KVPages,
    layer: Int32[Array, ""],
    key: Num[Array, "tokens kv_heads head_dim"],
    value: Num[Array, "tokens kv_heads head_dim"],
    step: StepInputs,
) -> KVPages:
    """Store the keys and values of a step's tokens in their pages, in place when donated."""
    page_size = pages.shape[4]
    position = step.positions[0]
    page = step.page_table[step.sequence_of, position // page_size]
    page = jnp.where(jnp.arange(position.size) < step.num_tokens, page, 0)
    new = jnp.stack([key, value], axis=1)  # [tokens, 2, kv_heads, head_dim]
    rows = to_bits(new, pages.dtype)
    return pages.at[page, layer, :, :, position % page_size].set(rows)
