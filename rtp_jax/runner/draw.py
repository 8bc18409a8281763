"""How one token is taken from a row: the most likely one, or one by chance.

Both look at the vocabulary in blocks, one pass over all of it and then a closer look at one block.
A running sum over 150 000 probabilities in float32 would lose the small ones; short ones, over
groups of blocks, the blocks of a group and the tokens of a block, do not.  Nothing here mixes rows.
Read next: `truncation.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt32

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.largest import largest

BLOCK = 128  # tokens
GROUP = 64  # blocks
LOWEST_EXPONENT = -80.0  # exp() of less would leave the normal numbers of float32

Rows = Float32[Array, " rows"]
Ids = Int32[Array, " rows"]
Logits = Float32[Array, "rows vocab"]


def most_likely(logits: Logits, vocab_size: int, native: str | None) -> tuple[Ids, Rows]:
    """Return the first of each row's largest logits, and that logit; +inf if the row has a NaN.

    Args:
      logits: of which columns from `vocab_size` on are padding; nothing is asked of it but that it
        is no NaN.
      vocab_size: columns that count.
      native: level of the C++ kernels that look, one that is loaded; None: XLA does.
    """
    if native is None:
        return _most_likely(logits, vocab_size)
    kernels = library.loaded(native)
    assert kernels is not None, native
    return largest(kernels, logits, vocab_size)


def _most_likely(logits: Logits, vocab_size: int) -> tuple[Ids, Rows]:
    """Find it in three passes.

    XLA's own argmax carries an index through the whole vocabulary and costs ten times a maximum;
    its maximum on a CPU passes over NaN, but a sum does not.  Cutting padding off first
    would copy all logits.
    """
    blocks = _cut(logits, BLOCK, -jnp.inf)
    whole, rest = divmod(vocab_size, BLOCK)
    largest_of = jnp.max(blocks, axis=2)[:, : whole + bool(rest)]
    if rest:
        last = jnp.max(logits[:, whole * BLOCK : vocab_size], axis=1, keepdims=True)
        largest_of = jnp.concatenate([largest_of[:, :whole], last], axis=1)
    block = jnp.argmax(largest_of, axis=1).astype(jnp.int32)
    token = block[:, None] * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    within = jnp.argmax(jnp.where(token < vocab_size, _take(blocks, block), -jnp.inf), axis=1)
    broken = jnp.isnan(jnp.sum(logits, axis=1))
    largest = jnp.where(broken, jnp.inf, jnp.max(largest_of, axis=1))
    return block * BLOCK + within.astype(jnp.int32), largest


def draw(logits: Logits, largest: Rows, threshold: Rows, temperatures: Rows, uniforms: Rows) -> Ids:
    """Draw a token of each row by the inverse of its distribution function, in order of ids.

    Only logits at or above the threshold take part, whatever the uniform number.  What is less
    than e^-80 times as likely as the best counts as impossible.
    """
    temperatures = jnp.where(temperatures > 0, temperatures, 1.0)
    lowest = jnp.maximum(threshold, largest + LOWEST_EXPONENT * temperatures)
    scaled = (logits - largest[:, None]) / temperatures[:, None]
    tokens = _cut(jnp.where(logits >= lowest[:, None], jnp.exp(scaled), 0.0), BLOCK, 0.0)
    blocks = _cut(jnp.sum(tokens, axis=2), GROUP, 0.0)
    groups = jnp.sum(blocks, axis=2)
    goal = uniforms * running_sum(groups)[:, -1]
    group, goal = _pick(groups, goal)
    block, goal = _pick(_take(blocks, group), goal)
    block += group * GROUP
    token, _ = _pick(_take(tokens, block), goal)
    return block * BLOCK + token


def uniforms(seeds: UInt32[Array, " rows"], positions: Ids) -> Rows:
    """Draw a number in [0, 1) for each row from the key `fold_in(key(seed), position)`."""

    def bits(seed: UInt32[Array, ""], position: Int32[Array, ""]) -> UInt32[Array, ""]:
        key = jax.random.key(seed, impl="threefry2x32")  # whatever the default generator is
        return jax.random.bits(jax.random.fold_in(key, position))

    return (jax.vmap(bits)(seeds, positions) >> 8).astype(jnp.float32) * 2.0**-24


def running_sum(x: Float32[Array, "rows n"]) -> Float32[Array, "rows n"]:
    """Sum up to and including each element; for short rows, which jnp.cumsum compiles slowly."""
    number = jnp.arange(x.shape[1])
    return jnp.sum(jnp.where(number <= number[:, None], x[:, None, :], 0.0), axis=2)


def _cut(
    x: Float32[Array, "rows n"], size: int, filler: float
) -> Float32[Array, "rows parts size"]:
    """Cut rows into parts of a size; the last one is filled up."""
    if missing := -x.shape[1] % size:
        x = jnp.pad(x, ((0, 0), (0, missing)), constant_values=filler)
    return x.reshape(x.shape[0], -1, size)


def _take(parts: Float32[Array, "rows parts size"], chosen: Ids) -> Float32[Array, "rows size"]:
    return jnp.take_along_axis(parts, chosen[:, None, None], axis=1)[:, 0]


def _pick(sizes: Float32[Array, "rows n"], goal: Rows) -> tuple[Ids, Rows]:
    """Find the first non-empty interval that ends past the goal, or else the last non-empty one.

    Returns also how far into it the goal lies.
    """
    ends = running_sum(sizes)
    number = jnp.arange(sizes.shape[1], dtype=jnp.int32)
    past = (sizes > 0) & (ends > goal[:, None])
    first = jnp.min(jnp.where(past, number, sizes.shape[1]), axis=1)
    last = jnp.max(jnp.where(sizes > 0, number, 0), axis=1)
    chosen = jnp.minimum(first, last)
    start = jnp.take_along_axis(ends - sizes, chosen[:, None], axis=1)[:, 0]
    return chosen, goal - start
