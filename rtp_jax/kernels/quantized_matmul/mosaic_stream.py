"""The Mosaic GPU kernel of quantized matmul for Hopper: weights stream through shared memory.

Read `mosaic_plan.py` first, which says which block computes what.

One warpgroup fetches tiles of the weight and of `x` with the copy engine into a ring of stages; the
others multiply.  Rows of the weight are the rows of wgmma, and tokens its columns, of which there
may be as few as 8: a decoding step wastes no arithmetic, and the weight comes from registers,
where int8 and int4 become bfloat16 on their way from shared memory (`mosaic_decode.py`).  The
result is transposed:

    part[o, t] = sum over the steps of this block of  value[o, i] * x[t, i]

Where groups have scales, each group has sums of its own, which are scaled as they are added:

    part[o, t] = sum over groups g of  scale[o, g] * x_scale[t, g] * (sum within g of value * x)

The same is done for float8 without groups, as wgmma's own sums of it are short (`sums_groups`).
Three kinds of int4 groups are the same operand of wgmma, 32 numbers wide, made of more planes the
smaller the group is:

    group of 128    plane 0 of 32 words  |  plane 1  |  plane 2  |  plane 3
    group of 64     plane 0 of 16 words, plane 1     |  plane 2, plane 3
    group of 32     plane 0 of 8 words, plane 1, plane 2, plane 3
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num, UInt8

from rtp_jax.kernels.quantized_matmul.mosaic_plan import Tiling, sums_groups
from rtp_jax.kernels.quantized_matmul.mosaic_sums import Job, Refs, Span, Summing

FETCH_REGISTERS = 32


class Operands(NamedTuple):
    """What the kernel reads; joining its three numbers into one array would be one more kernel."""

    x: Num[Array, "tokens inner"]  # bfloat16 by planes; int8 or float8 of a dynamic scheme
    values: Num[Array, "layers outer words"]  # int16 words; int8 or float8 of a dynamic scheme
    scales: Float[Array, "layers outer groups"]  # read only where there are groups
    layer: Int32[Array, "1"]
    tokens: Int32[Array, "1"]  # how many matter
    bias: Int32[Array, "1"]  # `mosaic_decode.BIAS`
    zeros: UInt8[Array, "layers outer groups"] | None = None
    x_scales: Float[Array, "groups tokens"] | None = None  # of a scheme that rounds groups of x


def stream(operands: Operands, job: Job) -> Num[Array, "parts outer tokens"]:
    """Run a plan.

    Returns:
      Parts of sums in float32, or int32 for int8 times int8.  Parts that the plan does not use are
      undefined, and so are tiles of tokens that do not matter.
    """
    tiling, x, values = job.tiling, operands.x, operands.values
    _, outer, words = values.shape
    scratch = {
        "x_stages": _stages(job, (tiling.tokens, tiling.inner), x.dtype),
        "value_stages": _stages(
            job, (tiling.outer, tiling.inner * words // x.shape[1]), values.dtype
        ),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=tiling.stages),
        "empty": plgpu.Barrier(num_arrivals=tiling.warpgroups, num_barriers=tiling.stages),
    }
    if job.interpret and job.planes > 1:
        scratch["decoded"] = plgpu.SMEM((tiling.warpgroups, tiling.rows, job.operand), x.dtype)
    given = {name: value for name, value in operands._asdict().items() if value is not None}
    names = [*given, "parts", *scratch]

    def streamed_matmul(*refs):  # the name that compiled programs show
        block = Block(Refs(**dict(zip(names, refs, strict=True))), job)

        @pl.when(block.warpgroup == tiling.warpgroups)
        def _():
            _set_registers(tiling, fetches=True)
            block.fetch()

        @pl.when(block.warpgroup < tiling.warpgroups)
        def _():
            _set_registers(tiling, fetches=False)
            block.multiply()

    sums = jnp.int32 if values.dtype == jnp.int8 else jnp.float32
    return plgpu.kernel(
        streamed_matmul,
        out_type=jax.ShapeDtypeStruct((job.plan.parts, outer, x.shape[0]), sums),
        grid=(job.plan.blocks,),
        grid_names=("block",),
        num_threads=tiling.warpgroups + 1,
        thread_name="warpgroup",
        scratch_types=list(scratch.values()),
        interpret=job.interpret,
    )(*given.values())


def _stages(job: Job, shape: tuple[int, int], dtype: jnp.dtype) -> Any:
    """Lay stages out as the copy engine writes and wgmma reads them: 8 rows of `row` bytes."""
    row = 64 if job.planes == 4 else 128
    tiles = plgpu.TilingTransform((8, row // dtype.itemsize))  # pyright: ignore[reportAbstractUsage]
    banks = plgpu.SwizzleTransform(row)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM((job.tiling.stages, *shape), dtype, transforms=(tiles, banks))


def _set_registers(tiling: Tiling, *, fetches: bool) -> None:
    """Move registers from the warpgroup that fetches to those that multiply."""
    warpgroups = tiling.warpgroups
    if warpgroups == 1:
        return  # there are enough
    at_start = 65536 // (128 * (warpgroups + 1)) // 8 * 8
    left = (at_start * (warpgroups + 1) - FETCH_REGISTERS) // warpgroups // 8 * 8
    if fetches:
        plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
    else:
        plgpu.set_max_registers(min(left, 232), action="increase")


class Block:
    """What one block does, seen from one of its warpgroups."""

    def __init__(self, refs: Refs, job: Job):
        self.refs, self.job = refs, job
        self.warpgroup = jax.lax.axis_index("warpgroup")
        self.number = jax.lax.axis_index("block")
        tiles = jnp.minimum(pl.cdiv(refs.tokens[0], job.tiling.tokens), job.plan.token_tiles)
        live = tiles * (job.plan.outer_tiles * job.plan.steps)
        self.first = self.number * job.plan.quota
        self.last = jnp.maximum(jnp.minimum(self.first + job.plan.quota, live), self.first)

    def fetch(self) -> None:
        """Fill stages as they become empty."""
        refs, tiling, steps = self.refs, self.job.tiling, self.job.plan.steps
        layer, words = refs.layer[0], refs.value_stages.shape[2]

        def fill(step, slot):
            tile = jax.lax.div(step, steps)
            along = step - tile * steps
            rows, tokens = self._spans(tile)

            @pl.when(step - self.first >= tiling.stages)
            def _():
                plgpu.barrier_wait(refs.empty.at[slot])

            inner = pl.ds(along * tiling.inner, tiling.inner)
            plgpu.copy_gmem_to_smem(
                refs.values.at[layer, rows, pl.ds(along * words, words)],
                refs.value_stages.at[slot],
                refs.full.at[slot],
            )
            plgpu.copy_gmem_to_smem(
                refs.x.at[tokens, inner], refs.x_stages.at[slot], refs.full.at[slot]
            )
            return jnp.where(slot == tiling.stages - 1, 0, slot + 1)

        jax.lax.fori_loop(self.first, self.last, fill, jnp.int32(0))
        for stage in range(tiling.stages):  # no signal may be left behind

            @pl.when(stage < self.last - self.first)
            def _(stage=stage):
                plgpu.barrier_wait(refs.empty.at[stage])

    def multiply(self) -> None:
        """Sum up every tile that the piece of the line touches, and store its part."""
        refs, tiling, plan = self.refs, self.job.tiling, self.job.plan
        first_tile = jax.lax.div(self.first, plan.steps)
        summing = Summing(refs, self.job, self.warpgroup)
        sum_up = summing.groups if sums_groups(self.job.scheme) else summing.steps

        def sum_tile(number, slot):
            tile = first_tile + number
            begin = jnp.maximum(self.first, tile * plan.steps)
            end = jnp.minimum(self.last, (tile + 1) * plan.steps)
            rows, tokens = self._spans(tile)
            rows = pl.ds(rows.start + self.warpgroup * tiling.rows, tiling.rows)
            total, slot = sum_up(Span(begin, end, begin - tile * plan.steps, rows, tokens), slot)
            part = self.number - jax.lax.div(tile * plan.steps, plan.quota)
            refs.parts[part, rows, tokens] = total
            return slot

        tiles = jax.lax.div(self.last - 1, plan.steps) - first_tile + 1
        jax.lax.fori_loop(0, tiles, sum_tile, jnp.int32(0))

    def _spans(self, tile) -> tuple[pl.Slice, pl.Slice]:
        """Name the rows of the weight and the tokens of a tile; tokens advance last."""
        tiling, across = self.job.tiling, self.job.plan.outer_tiles
        column = jax.lax.div(tile, across)
        rows = pl.ds((tile - column * across) * tiling.outer, tiling.outer)
        return rows, pl.ds(column * tiling.tokens, tiling.tokens)
