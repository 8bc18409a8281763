"""How one token is taken from a row: the most likely one, or one by chance.

Both look at the vocabulary in blocks, one pass over all of it and then a closer look at one block.
A running sum over 150 000 probabilities in float32 would lose the small ones; two short ones, over
blocks and within a block, do not.  Nothing here mixes rows.  Read next: `truncation.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt32

BLOCK = 512
LOWEST_EXPONENT = -80.0  # exp() of less would leave the normal numbers of float32

Rows = Float32[Array, " rows"]
Ids = Int32[Array, " rows"]
Logits = Float32[Array, "rows vocab"]


def most_likely(logits: Logits) -> tuple[Ids, Rows]:
    """Return the first of each row's largest logits, and that logit; +inf if the row has a NaN.

    XLA's own argmax carries an index through the whole vocabulary and costs ten times a maximum;
    its maximum on a CPU passes over NaN.
    """
    blocks = _blocks(jnp.where(jnp.isnan(logits), jnp.inf, logits))
    largest_of = jnp.max(blocks, axis=2)
    block = jnp.argmax(largest_of, axis=1).astype(jnp.int32)
    within = jnp.argmax(_take(blocks, block), axis=1).astype(jnp.int32)
    return block * blocks.shape[2] + within, jnp.max(largest_of, axis=1)


def draw(logits: Logits, largest: Rows, threshold: Rows, temperatures: Rows, uniforms: Rows) -> Ids:
    """Draw a token of each row by the inverse of its distribution function, in order of ids.

    Only logits at or above the threshold take part, whatever the uniform number.  What is less
    than e^-80 times as likely as the best counts as impossible.
    """
    temperatures = jnp.where(temperatures > 0, temperatures, 1.0)
    lowest = jnp.maximum(threshold, largest + LOWEST_EXPONENT * temperatures)

    def weigh(x: Float32[Array, "rows ..."]) -> Float32[Array, "rows ..."]:
        shape = (-1,) + (1,) * (x.ndim - 1)
        scaled = (x - largest.reshape(shape)) / temperatures.reshape(shape)
        return jnp.where(x >= lowest.reshape(shape), jnp.exp(scaled), 0.0)

    blocks = _blocks(logits)
    sums = jnp.sum(weigh(blocks), axis=2)
    ends = jnp.cumsum(sums, axis=1)
    goal = uniforms * ends[:, -1]
    block = _first_past(goal, ends, sums)
    goal -= jnp.take_along_axis(ends - sums, block[:, None], axis=1)[:, 0]
    weights = weigh(_take(blocks, block))
    within = _first_past(goal, jnp.cumsum(weights, axis=1), weights)
    return block * blocks.shape[2] + within


def uniforms(seeds: UInt32[Array, " rows"], positions: Ids) -> Rows:
    """Draw a number in [0, 1) for each row from the key `fold_in(key(seed), position)`."""

    def bits(seed: UInt32[Array, ""], position: Int32[Array, ""]) -> UInt32[Array, ""]:
        key = jax.random.key(seed, impl="threefry2x32")  # whatever the default generator is
        return jax.random.bits(jax.random.fold_in(key, position))

    return (jax.vmap(bits)(seeds, positions) >> 8).astype(jnp.float32) * 2.0**-24


def _blocks(logits: Logits) -> Float32[Array, "rows blocks block"]:
    """Cut the vocabulary into blocks, without a copy where a power of two divides it."""
    vocab = logits.shape[1]
    size = BLOCK
    while size > 64 and vocab % size:
        size //= 2
    if padding := -vocab % size:
        logits = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    return logits.reshape(logits.shape[0], -1, size)


def _take(blocks: Float32[Array, "rows blocks block"], chosen: Ids) -> Float32[Array, "rows block"]:
    return jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]


def _first_past(goal: Rows, ends: Float32[Array, "rows n"], sizes: Float32[Array, "rows n"]) -> Ids:
    """Find the first non-empty interval that ends past the goal, or else the last non-empty one."""
    number = jnp.arange(sizes.shape[1], dtype=jnp.int32)
    filled = sizes > 0
    first = jnp.min(jnp.where(filled & (ends > goal[:, None]), number, sizes.shape[1]), axis=1)
    last = jnp.max(jnp.where(filled, number, 0), axis=1)
    return jnp.minimum(first, last)
