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
from jaxtyping import Array, Bool, Float32, Int32

from rtp_jax.runner.draw import running_sum
from rtp_jax.runner.sampling_inputs import RowOptions

CANDIDATES = 128

Rows = Float32[Array, " rows"]
Flags = Bool[Array, " rows"]
Logits = Float32[Array, "rows vocab"]
Best = Float32[Array, "rows candidates"]  # the largest logits of each row, largest first
Weigh = Callable[[Float32[Array, "rows n"]], Float32[Array, "rows n"]]


def thresholds(logits: Logits, largest: Rows, options: RowOptions) -> Rows:
    """Find the smallest logit that each row keeps; -inf where all are kept.

    Rows without a finite `largest` and greedy rows get -inf.
    """
    live = jnp.isfinite(largest) & (options.temperatures > 0)
    ks = jnp.where(live & (options.top_ks < logits.shape[1]), options.top_ks, 0)
    ps = jnp.where(live, options.top_ps, 1.0)
    floor = largest + options.temperatures * jnp.log(options.min_ps)
    floor = jnp.where(live & (options.min_ps > 0), jnp.minimum(floor, largest), -jnp.inf)

    def by_rank() -> Rows:
        best = jax.lax.top_k(logits, min(CANDIDATES, logits.shape[1]))[0]
        raised = jnp.maximum(floor, _kth(logits, best, floor, ks))
        return jnp.maximum(raised, _nucleus(logits, best, raised, ps, options.temperatures))

    return jax.lax.cond(jnp.any((ks > 0) | (ps < 1)), by_rank, lambda: floor)


def _kth(logits: Logits, best: Best, floor: Rows, ks: Int32[Array, " rows"]) -> Rows:
    """Find the k-th largest logit of the rows that have a k; -inf elsewhere."""

    def weigh(x: Float32[Array, "rows n"]) -> Float32[Array, "rows n"]:
        return jnp.ones_like(x)  # a count in float32 is exact below 2^24 tokens

    return _reach(logits, best, floor, weigh, ks.astype(jnp.float32), ks > 0)


def _nucleus(logits: Logits, best: Best, floor: Rows, ps: Rows, temperatures: Rows) -> Rows:
    """Find the smallest logit of the nucleus of the rows that have one; -inf elsewhere."""
    scales = jnp.where(temperatures > 0, temperatures, 1.0)[:, None]

    def weigh(x: Float32[Array, "rows n"]) -> Float32[Array, "rows n"]:
        return jnp.exp((x - best[:, :1]) / scales)

    def found() -> Rows:
        needed = ps * _weight_above(logits, weigh(logits), floor)
        return _reach(logits, best, floor, weigh, needed, ps < 1)

    return jax.lax.cond(jnp.any(ps < 1), found, lambda: jnp.full_like(floor, -jnp.inf))


def _weight_above(logits: Logits, weights: Logits, threshold: Rows) -> Rows:
    return jnp.sum(jnp.where(logits >= threshold[:, None], weights, 0.0), axis=1)


def _reach(
    logits: Logits, best: Best, floor: Rows, weigh: Weigh, needed: Rows, asks: Flags
) -> Rows:
    """Find the largest logit at or above which lies the needed weight; -inf if nobody asks.

    Only logits at or above the floor count.  If even all of them weigh too little, the floor is
    the answer.
    """
    weights = jnp.where(best >= floor[:, None], weigh(best), 0.0)
    reached = running_sum(weights) >= needed[:, None]
    first = jnp.argmax(reached, axis=1)[:, None]
    among_best = asks & jnp.any(reached, axis=1)
    found = jnp.where(among_best, jnp.take_along_axis(best, first, axis=1)[:, 0], -jnp.inf)
    beyond = asks & ~among_best & (best[:, -1] >= floor) & (best[:, -1] > -jnp.inf)

    def searched() -> Rows:
        all_weights = weigh(logits)
        above_floor = (logits >= floor[:, None]) & (logits > -jnp.inf)
        low = jnp.min(jnp.where(above_floor, logits, jnp.inf), axis=1)
        low, high = jnp.where(beyond, low, found), jnp.where(beyond, best[:, -1], found)
        return _bisect(
            logits, low, high, lambda middle: _weight_above(logits, all_weights, middle) >= needed
        )

    return jax.lax.cond(jnp.any(beyond), searched, lambda: found)


def _bisect(logits: Logits, low: Rows, high: Rows, enough: Callable[[Rows], Flags]) -> Rows:
    """Find the largest logit with enough at or above it, between two logits of each row.

    At or above `low` there is enough, or all there is; the answer is at most `high`.  Each pass
    takes the half with the answer and moves its end to the nearest logit, so a row is done when its
    ends meet: after about log2((high - low) / gap) passes, where gap is the distance of two logits.
    """

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
