"""Which tokens min-p, top-k and top-p leave: one threshold on the logits of each row.

All three keep the most likely tokens, so a row's kept set is `logits >= threshold`, and equal
logits are kept or dropped together.  At the boundary of top-k that is vLLM's rule (more than k
survive a tie); at the boundary of top-p vLLM splits ties by an order that it does not state, and we
keep them all.  So top-p keeps a token if what is strictly more likely has less than top_p.

The thresholds are exact, and no vocabulary is sorted.  Most of them lie among a few candidates,
which `top_k` finds in one pass; rows whose thresholds do not are bisected, a pass for each halving.
Read next: `draw.py`, which takes a token from what is left.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from rtp_jax.runner.sampling_inputs import RowOptions

CANDIDATES = 128

Rows = Float32[Array, " rows"]
Logits = Float32[Array, "rows vocab"]


def thresholds(logits: Logits, largest: Rows, options: RowOptions) -> Rows:
    """Find the smallest logit that each row keeps; -inf where all are kept.

    Rows without a finite `largest` and greedy rows get -inf.
    """
    live = jnp.isfinite(largest) & (options.temperatures > 0)
    keeps_all = (options.min_ps <= 0) & (options.top_ks <= 0) & (options.top_ps >= 1)
    floor = largest + options.temperatures * jnp.log(options.min_ps)  # log(0) is -inf
    floor = jnp.where(live & (options.min_ps > 0), jnp.minimum(floor, largest), -jnp.inf)
    asks = live & ~keeps_all & ((options.top_ks > 0) | (options.top_ps < 1))
    return jax.lax.cond(
        jnp.any(asks), lambda: _by_rank(logits, largest, floor, live, options), lambda: floor
    )


def _by_rank(
    logits: Logits, largest: Rows, floor: Rows, live: Bool[Array, " rows"], options: RowOptions
) -> Rows:
    """Raise the thresholds by top-k, then by top-p of what top-k has left."""
    vocab = logits.shape[1]
    best = jax.lax.top_k(logits, min(CANDIDATES, vocab))[0]
    ks = jnp.where(live & (options.top_ks < vocab), options.top_ks, 0)
    floor = jnp.maximum(floor, _kth(logits, best, ks, floor))
    ps = jnp.where(live, options.top_ps, 1.0)
    return jnp.maximum(floor, _nucleus(logits, best, ps, floor, largest, options.temperatures))


def _kth(logits: Logits, best: Float32[Array, "rows candidates"], ks, floor: Rows) -> Rows:
    """Find the k-th largest logit of each row that has a k; -inf elsewhere."""
    here = (ks > 0) & (ks <= best.shape[1])
    found = jnp.take_along_axis(best, jnp.clip(ks - 1, 0, best.shape[1] - 1)[:, None], 1)[:, 0]
    found = jnp.where(here, found, -jnp.inf)

    def enough(threshold: Rows) -> Bool[Array, " rows"]:
        return jnp.sum(jnp.where(logits >= threshold[:, None], 1.0, 0.0), axis=1) >= ks

    # A count in float32 is exact below 2^24 tokens.
    return _search(logits, best[:, -1], found, floor, (ks > best.shape[1]), enough)


def _nucleus(
    logits: Logits,
    best: Float32[Array, "rows candidates"],
    ps: Rows,
    floor: Rows,
    largest: Rows,
    temperatures: Rows,
) -> Rows:
    """Find the smallest logit of each row's nucleus; -inf where top_p is 1."""
    asks = ps < 1

    def mass(threshold: Rows) -> Rows:
        weights = jnp.exp((logits - largest[:, None]) / temperatures[:, None])
        return jnp.sum(jnp.where(logits >= threshold[:, None], weights, 0.0), axis=1)

    needed = ps * mass(floor)
    weights = jnp.exp((best - largest[:, None]) / temperatures[:, None])
    weights = jnp.where(best >= floor[:, None], weights, 0.0)
    reached = jnp.cumsum(weights, axis=1) >= needed[:, None]
    first = jnp.argmax(reached, axis=1)
    found = jnp.take_along_axis(best, first[:, None], axis=1)[:, 0]
    here = asks & jnp.any(reached, axis=1)
    found = jnp.where(here, found, -jnp.inf)
    return _search(
        logits, best[:, -1], found, floor, asks & ~here, lambda rows: mass(rows) >= needed
    )


def _search(
    logits: Logits,
    upper: Rows,
    found: Rows,
    floor: Rows,
    open_rows: Bool[Array, " rows"],
    enough: Callable[[Rows], Bool[Array, " rows"]],
) -> Rows:
    """Find the largest logit with `enough` at or above it, in the rows that are open.

    Both ends are logits of the row: `low` has enough, and the answer is at most `high`.  Each pass
    takes the half that holds the answer and moves its end to the nearest logit, so a row is done
    when its ends meet.
    """
    above_floor = (logits >= floor[:, None]) & (logits > -jnp.inf)
    low = jnp.min(jnp.where(above_floor, logits, jnp.inf), axis=1)
    low = jnp.where(open_rows, low, found)
    high = jnp.where(open_rows, jnp.maximum(upper, low), found)

    def halve(ends: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
        low, high = ends
        middle = 0.5 * low + 0.5 * high
        middle = jnp.where((middle > low) & (middle < high), middle, high)
        above = logits >= middle[:, None]
        ascend = (low < high) & enough(middle)
        descend = (low < high) & ~ascend
        low = jnp.where(ascend, jnp.min(jnp.where(above, logits, jnp.inf), axis=1), low)
        high = jnp.where(descend, jnp.max(jnp.where(above, -jnp.inf, logits), axis=1), high)
        return low, high

    return jax.lax.while_loop(lambda ends: jnp.any(ends[0] < ends[1]), halve, (low, high))[0]
