"""The contract of everything paged: how KV lies in memory, and what a step knows about it.

Read next: `paged_attention/reference.py`.

All layers of one KV group share one array.  A page is one contiguous byte range of it:

    pages[page, layer, 0 = key | 1 = value, kv_head, offset, :]

Position p of a sequence lies in page `page_table[sequence, p // page_size]` at offset
`p % page_size`.  Page 0 is the null page: padding is written there and nobody reads it.  bfloat16
is stored as uint16 bits, because jax 0.10 on a CPU widens a whole bfloat16 array to update a row;
float8_e4m3fn as uint8 bits, because every jax does so for it.

Pages of int8 or float8 numbers may have scales beside them, one float32 for each token and KV head:

    key[p] = pages[page, layer, 0, kv_head, offset, :] * scales[page, layer, 0, kv_head, offset]

A latent (MLA) group will have pages of its own: one KV head, no axis of length 2, and as many
numbers as a token's latent and its rotated part have together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Num

KVPages = Num[Array, "pages layers 2 kv_heads page_size head_dim"]
KVScales = Float32[Array, "pages layers 2 kv_heads page_size"]
LARGEST = {"int8": 127.0, "uint8": 448.0}  # what the largest number of a head is stored as
SMALLEST_SCALE = 1e-30  # of a head that is all zeros
ROUNDINGS = ("plain", "int8", "fp8")


class KVGroup(NamedTuple):
    """The arrays of one KV group.

    Layers are counted within the group; all groups have the same pages, under the same numbers.
    """

    pages: KVPages
    scales: KVScales | None  # None: pages hold numbers as they are
    # For calibration: which of `ROUNDINGS` the numbers of each layer go through before pages of
    # float32 hold them; None: none.
    rounding: Int32[Array, " layers"] | None = None


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
    bits = {"bfloat16": jnp.uint16, "float8_e4m3fn": jnp.uint8}
    return jnp.dtype(bits.get(jnp.dtype(dtype).name, dtype))


def to_bits(x: Num[Array, "*shape"], storage: jnp.dtype) -> Num[Array, "*shape"]:
    """Encode numbers as pages store them."""
    if storage == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    if storage == jnp.uint8:
        return jax.lax.bitcast_convert_type(x.astype(jnp.float8_e4m3fn), jnp.uint8)
    return x.astype(storage)


def from_bits(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """Decode what pages store into numbers: uint16 is bfloat16, uint8 float8, the rest itself."""
    if x.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
    return jax.lax.bitcast_convert_type(x, jnp.float8_e4m3fn) if x.dtype == jnp.uint8 else x


def write_kv(
    kv: KVGroup,
    layer: Int32[Array, ""],
    key: Num[Array, "tokens kv_heads head_dim"],
    value: Num[Array, "tokens kv_heads head_dim"],
    step: StepInputs,
) -> KVGroup:
    """Store the keys and values of a step's tokens in their pages, in place when donated.

    Where there are scales, each head of a token gets its own: its largest number is stored as the
    largest there is.
    """
    pages, scales, rounding = kv
    page, offset = _places(step, pages.shape[4])
    new = jnp.stack([key, value], axis=1)  # [tokens, 2, kv_heads, head_dim]
    if rounding is not None:
        new = jax.lax.switch(rounding[layer], [jnp.float32, _through_int8, _through_fp8], new)
    if scales is not None:
        new, scale = _scaled(new, pages.dtype)
        scales = scales.at[page, layer, :, :, offset].set(scale)
    pages = pages.at[page, layer, :, :, offset].set(to_bits(new, pages.dtype))
    return KVGroup(pages, scales, rounding)


def _scaled(
    x: Num[Array, "*shape head_dim"], storage: jnp.dtype
) -> tuple[Float32[Array, "*shape head_dim"], Float32[Array, "*shape"]]:
    """Divide each head by its scale, and round it where pages hold integers."""
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(-1) / LARGEST[storage.name], SMALLEST_SCALE)
    # A head with what is no number has a scale that is none: among integers nobody would see it,
    # and the largest of a head may not be it, as XLA's maximum on a CPU passes over NaN at times.
    sound = jnp.isfinite(wide).all(-1)
    divided = jnp.where(sound[..., None], wide / scale[..., None], 0)
    scale = jnp.where(sound, scale, jnp.nan)
    return jnp.round(divided) if storage == jnp.int8 else divided, scale


def _through_int8(x: Num[Array, "*shape head_dim"]) -> Float32[Array, "*shape head_dim"]:
    return _through(x, jnp.dtype(jnp.int8))


def _through_fp8(x: Num[Array, "*shape head_dim"]) -> Float32[Array, "*shape head_dim"]:
    return _through(x, jnp.dtype(jnp.uint8))


def _through(
    x: Num[Array, "*shape head_dim"], storage: jnp.dtype
) -> Float32[Array, "*shape head_dim"]:
    """Give the numbers that are read where `x` was stored."""
    divided, scale = _scaled(x, storage)
    return from_bits(to_bits(divided, storage)).astype(jnp.float32) * scale[..., None]


def _places(
    step: StepInputs, page_size: int
) -> tuple[Int32[Array, " tokens"], Int32[Array, " tokens"]]:
    """Find the page and the offset of each token of a step; of padding, in the null page."""
    position = step.positions[0]
    page = step.page_table[step.sequence_of, position // page_size]
    page = jnp.where(jnp.arange(position.size) < step.num_tokens, page, 0)
    return page, position % page_size
