"""How one warpgroup of the Hopper kernel multiplies the stages that it is given.

Read `mosaic_stream.py` first, which fills the stages, and `mosaic_decode.py` for how numbers leave
their words.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rtp_jax.kernels.quantized_matmul.mosaic_decode import biased, decode
from rtp_jax.kernels.quantized_matmul.mosaic_plan import (
    GROUP,
    Plan,
    Tiling,
    group_size,
    sums_at_once,
)
from rtp_jax.quant.schemes import Scheme

MATRIX = plgpu.Layout.WGMMA
BY_ROW, BY_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)
ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]


class Job(NamedTuple):
    """What is static."""

    scheme: Scheme
    tiling: Tiling
    plan: Plan
    interpret: plgpu.InterpretGPUParams | None = None  # simulate on the CPU

    @property
    def planes(self) -> int:
        """Numbers in a word of the weight; 1 where wgmma multiplies values as they are stored."""
        return 1 if self.scheme.dynamic else 16 // self.scheme.bits

    @property
    def operand(self) -> int:
        """Numbers along inner of a decoded operand of wgmma: those of a swizzled row of `x`."""
        return GROUP // self.planes


class Refs(NamedTuple):
    """What a block sees; None is what a scheme does not have, or only a simulation has."""

    x: Any
    values: Any
    scales: Any
    layer: Any
    tokens: Any
    bias: Any
    parts: Any
    x_stages: Any
    value_stages: Any
    full: Any  # a barrier for each stage: fetched
    empty: Any  # a barrier for each stage: multiplied
    zeros: Any = None
    x_scales: Any = None
    decoded: Any = None  # where simulated


class Span(NamedTuple):
    """Steps of one tile that a block sums up."""

    begin: Any  # on the line of all steps
    end: Any
    along: Any  # the step of the tile that `begin` is
    rows: pl.Slice  # of the weight, that this warpgroup multiplies
    tokens: pl.Slice


class Summing:
    """One warpgroup that multiplies."""

    def __init__(self, refs: Refs, job: Job, warpgroup):
        self.refs, self.job, self.warpgroup = refs, job, warpgroup
        self.layer, self.bias = refs.layer[0], refs.bias[0].astype(jnp.int16)

    def steps(self, span: Span, slot):
        """Sum steps where scales can wait until the end; return sums and the next stage."""
        tiling, refs = self.job.tiling, self.refs
        shape = (tiling.rows, tiling.tokens)
        sums = refs.parts.dtype

        def run(total):
            def step(_, slot):
                plgpu.barrier_wait(refs.full.at[slot])
                for start in range(0, tiling.inner, GROUP):
                    self._add(total, slot, start, self._words(slot, start), None)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(refs.empty.at[slot])
                return self._next(slot)

            after = jax.lax.fori_loop(span.begin, span.end, step, slot)
            return total[...], after

        return pl.run_scoped(run, ACC(shape, sums))

    def groups(self, span: Span, slot):
        """Sum steps group by group, each with its scales if it has any."""
        tiling, refs, scheme = self.job.tiling, self.refs, self.job.scheme
        shape, size = (tiling.rows, tiling.tokens), group_size(scheme)
        at_once = sums_at_once(tiling, scheme)

        def step(index, carry):
            total, slot = carry
            first = (span.along + index - span.begin) * (tiling.inner // size)
            known = [self._known(span, first + group) for group in range(tiling.inner // size)]
            plgpu.barrier_wait(refs.full.at[slot])
            words = None
            for start in range(0, tiling.inner, at_once * size):
                if start % GROUP == 0:
                    words = self._words(slot, start)

                def run(*parts, start=start, words=words):
                    for number, part in enumerate(parts):
                        place = start + number * size
                        self._add(part, slot, place, words, known[place // size].zero)
                    return [part[...] for part in parts]

                parts = pl.run_scoped(run, *[ACC(shape, jnp.float32)] * at_once)
                for number, part in enumerate(parts):
                    total += known[start // size + number].scaled(part)
            plgpu.barrier_arrive(refs.empty.at[slot])
            return total, self._next(slot)

        zeros = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), MATRIX)
        return jax.lax.fori_loop(span.begin, span.end, step, (zeros, slot))

    def _known(self, span: Span, column) -> "GroupNumbers":
        """Load what is stored about one group of every row and token."""
        refs, scheme = self.refs, self.job.scheme
        if scheme.group is None:
            return GroupNumbers()

        def of_rows(ref):
            return plgpu.load(ref.at[self.layer, span.rows, column], layout=BY_ROW, optimized=False)

        zero = x_scale = None
        if refs.zeros is not None:
            zero = biased(of_rows(refs.zeros), self.bias)
        if refs.x_scales is not None:
            x_scale = plgpu.load(
                refs.x_scales.at[column, span.tokens], layout=BY_COLUMN, optimized=False
            )
        return GroupNumbers(of_rows(refs.scales), x_scale, zero)

    def _next(self, slot):
        return jnp.where(slot == self.job.tiling.stages - 1, 0, slot + 1)

    def _words(self, slot, start: int):
        """Load the words of 128 numbers along inner."""
        rows, planes = self.job.tiling.rows, self.job.planes
        if planes == 1:
            return None
        mine, width = pl.ds(self.warpgroup * rows, rows), GROUP // planes
        return self.refs.value_stages[slot, mine, pl.ds(start // planes, width)]

    def _add(self, total, slot, start: int, words, zero) -> None:
        """Add the product of a group; wgmma is on its way when this returns.

        Args:
          total: sums.
          slot: which stage.
          start: where the group, or all of 128 numbers, begins along inner.
          words: of the 128 numbers around it.
          zero: `biased` zero points, if there are any.
        """
        refs, rows, planes = self.refs, self.job.tiling.rows, self.job.planes
        size, width = group_size(self.job.scheme), self.job.operand

        def of_x(begin: int, count: int):
            return refs.x_stages.at[slot, :, pl.ds(begin, count)].transpose((1, 0))

        if planes == 1:
            values = refs.value_stages.at[slot, pl.ds(self.warpgroup * rows, rows)]
            plgpu.wgmma(total, values.at[:, pl.ds(start, size)], of_x(start, size))
            return
        first, count = start % GROUP // planes, size // planes
        words = words[:, first : first + count]
        if zero is not None:
            zero = jax.lax.broadcast_in_dim(zero, words.shape, (0,))
        for place in range(0, size, width):
            together = range(place // count, (place + width) // count)
            decoded = [
                decode(words, plane, self.job.scheme.bits, self.bias, zero) for plane in together
            ]
            numbers = decoded[0] if len(decoded) == 1 else jnp.concatenate(decoded, axis=1)
            if refs.decoded is None:
                plgpu.wgmma(total, numbers, of_x(start + place, width))
            else:  # the simulator knows wgmma from shared memory only
                mirror = refs.decoded.at[self.warpgroup]
                mirror[...] = numbers
                plgpu.commit_smem()
                plgpu.wgmma(total, mirror, of_x(start + place, width))


class GroupNumbers(NamedTuple):
    """What is stored about a group: a number for each row, or for each token."""

    scale: Any = None  # of rows
    x_scale: Any = None  # of tokens
    zero: Any = None  # of rows, `biased`

    def scaled(self, part):
        """Multiply sums [rows, tokens] by the scales that there are."""
        if self.scale is not None:
            part *= jax.lax.broadcast_in_dim(self.scale, part.shape, (0,))
        if self.x_scale is not None:
            part *= jax.lax.broadcast_in_dim(self.x_scale, part.shape, (1,))
        return part
