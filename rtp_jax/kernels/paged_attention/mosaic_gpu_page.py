"""What a warpgroup of the Mosaic GPU kernel does with one page: a step of the running softmax.

    S = Q K^T;   P = exp(S - high);   out = out * decay + P V

Registers hold `high`, the sum and the result of 64 rows.  Shared memory holds the queries and the
page; the weights P go from registers to the tensor cores.

Source: Milakov & Gimelshein 2018 (arXiv:1805.02867), algorithm 3.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int32

from rtp_jax.kernels.paged_attention.mosaic_gpu_memory import COMPUTE, Ref, Tile, Warpgroup
from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import ROWS, Problem

MASKED = -1e30  # finite: a page without a visible key must not make NaN
COLUMNS = 128  # of the result that are multiplied at once
LOG2E = math.log2(math.e)
MATRIX = plgpu.Layout.WGMMA
BY_ROW = MATRIX.reduce(1)
BY_COLUMN = MATRIX.reduce(0)
PACKED = plgpu.Layout.WGMMA_UPCAST_2X  # four bytes of a row lie in one register


def opening(me: Warpgroup, tile: Tile):
    """The state before the first page: nothing seen, or the sink of each row's head."""
    mixed = tuple(
        plgpu.layout_cast(jnp.zeros((ROWS, some.size), jnp.float32), MATRIX)
        for some in columns(me.problem)
    )
    opens = jnp.float32(0.0)
    if me.shared.sinks is not None:
        opens = tile.opens.astype(jnp.float32)
    total = plgpu.layout_cast(jnp.full((ROWS,), opens), BY_ROW)
    high = (1.0 - total) * MASKED
    if me.shared.sinks is not None:
        sinks = plgpu.load(me.shared.sinks.at[me.number], (), layout=BY_ROW, optimized=False)
        high += total * sinks
    return mixed, high, total


def page(me: Warpgroup, tile: Tile, position, number: Int32[Array, ""], state):
    """Take one page into the running softmax."""
    mixed, high, total, seen = state
    problem, signals, stage = me.problem, me.signals, me.stage(seen)
    size = problem.page_size
    last = tile.first + tile.tokens - 1 - number * size  # offset of the tile's last token
    plgpu.barrier_wait(signals.key_full.at[stage])
    score = _scores(me, stage)
    plgpu.barrier_arrive(signals.key_free.at[stage])
    score, unit = _bounded(problem, score)
    key = plgpu.broadcasted_iota(jnp.int32, score.shape, 1, layout=MATRIX) + number * size
    visible = key <= position
    if problem.windowed:
        visible &= key > position - me.inputs.work[2]
    score = jnp.where(visible, score, MASKED)
    new_high = jnp.maximum(high, score.max(axis=1) * unit)
    weight = jnp.exp2(score * unit - jax.lax.broadcast_in_dim(new_high, score.shape, [0]))
    decay = jnp.exp2(high - new_high)
    total = total * decay + weight.sum(axis=1)
    plgpu.barrier_wait(signals.value_full.at[stage])
    mixed = _mix(me, stage, weight, last, [(block, decay) for block in mixed])
    plgpu.barrier_arrive(signals.value_free.at[stage])
    return mixed, new_high, total, seen + 1


def _scores(me: Warpgroup, stage: Int32[Array, ""]):
    """Multiply the member's queries with the keys of a page."""
    shared, page = me.shared, me.shared.key.at[stage]
    scale = _scale(shared.key_scale, stage)
    if shared.numbers is not None:
        keys = shared.numbers.at[me.number]
        keys[...] = _decoded(page)
        plgpu.commit_smem()
    else:
        keys = page

    def multiply(accumulator: Ref):
        plgpu.wgmma(accumulator, shared.query.at[me.number], keys.transpose((1, 0)))
        return accumulator[...]

    score = pl.run_scoped(
        multiply, plgpu.WGMMAAccumulatorRef((ROWS, me.problem.page_size), jnp.float32)
    )
    return score if scale is None else score * jax.lax.broadcast_in_dim(scale, score.shape, [1])


def _scale(scales, stage: Int32[Array, ""]):
    """Read the scales of a page, if it has any: before the fence that lets it be overwritten."""
    if scales is None:
        return None
    return plgpu.load(scales.at[stage], (), layout=BY_COLUMN, optimized=False)


def _mix(me: Warpgroup, stage: Int32[Array, ""], weight, last: Int32[Array, ""], before):
    """Add the values of a page by their weights to what came before, which decays.

    Those behind offset `last` are left out, not only weighted with 0: pages are recycled, past the
    end of a sequence lies anything, and 0 * NaN is NaN.
    """
    shared, page = me.shared, me.shared.value.at[stage]
    scale = _scale(shared.value_scale, stage)
    if scale is not None:
        offset = plgpu.broadcasted_iota(jnp.int32, scale.shape, 0, layout=BY_COLUMN)
        scale = jnp.where(offset <= last, scale, 0.0)
        weight *= jax.lax.broadcast_in_dim(scale, weight.shape, [1])
    weight = weight.astype(COMPUTE)  # now: it needs fewer registers so
    if shared.numbers is not None:
        values = shared.numbers.at[me.number]
        values[...] = _decoded(page)  # float8 bits and integers make no NaN
        plgpu.commit_smem()
    else:
        values = page
        pl.when(last < me.problem.page_size - 1)(lambda: _clean(me, page, last))
    if shared.weights is not None:
        shared.weights[me.number] = weight
        plgpu.commit_smem()
        weight = shared.weights.at[me.number]

    after = []
    for some, (block, decay) in zip(columns(me.problem), before, strict=True):

        def multiply(accumulator: Ref, some: pl.Slice = some):
            plgpu.wgmma(accumulator, weight, values.at[:, some])
            return accumulator[...]

        part = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(block.shape, jnp.float32))
        after.append(block * jax.lax.broadcast_in_dim(decay, block.shape, [0]) + part)
    return tuple(after)


def columns(problem: Problem) -> list[pl.Slice]:
    """Divide the result into blocks of columns of which registers can hold one more."""
    size = min(problem.head_dim, COLUMNS)
    return [pl.ds(begin, size) for begin in range(0, problem.head_dim, size)]


def _clean(me: Warpgroup, page: Ref, last: Int32[Array, ""]):
    """Put zeros for the values behind offset `last` of a page, once for all members."""

    @pl.when(me.member == 0)
    def _cleanpage():
        value = plgpu.load(page, (), layout=MATRIX)
        offset = plgpu.broadcasted_iota(jnp.int32, value.shape, 0, layout=MATRIX)
        page[...] = jnp.where(offset <= last, value, jnp.zeros_like(value))
        plgpu.commit_smem()

    if me.tiling.members > 1:
        plgpu.barrier_arrive(me.signals.cleaned.at[me.team])
        plgpu.barrier_wait(me.signals.cleaned.at[me.team])


def _decoded(page: Ref):
    """Turn a page of int8 numbers, or of float8_e4m3fn bits, into bfloat16 numbers.

    float8 has no conversion to bfloat16 on Hopper.  Its exponent and fraction are moved to where
    bfloat16 has them; what is then wrong is the bias of the exponent, 127 instead of 7.
    """
    held = plgpu.load(page, (), layout=PACKED)
    if page.dtype == jnp.int8:
        return held.astype(COMPUTE)
    wide = held.astype(jnp.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 4)
    return jax.lax.bitcast_convert_type(bits, COMPUTE) * jnp.asarray(2.0**120, COMPUTE)


def _bounded(problem: Problem, score):
    """Scores before the softmax, and the factor that makes them exponents of 2."""
    if problem.soft_cap is None:
        if problem.scale > 0:
            return score, problem.scale * LOG2E  # applied where it costs nothing
        return score * problem.scale, LOG2E
    # tanh(x) by the exponential: the instruction for tanh is off by up to 5e-4.
    twice = jnp.exp2(score * (2 * LOG2E * problem.scale / problem.soft_cap))
    return 1.0 - 2.0 / (1.0 + twice), problem.soft_cap * LOG2E
