"""The Mosaic GPU kernel of quantized matmul for Hopper: weights stream through shared memory.

Read `mosaic_plan.py` first, which says which block computes what.

One warpgroup fetches tiles of the weight and of `x` with the copy engine into a ring of stages; the
others multiply.  Rows of the weight are the rows of wgmma, and tokens its columns, of which there
may be as few as 8: a decoding step wastes no arithmetic, and the weight comes from registers,
where int8 and int4 become bfloat16 on their way from shared memory.  The result is transposed:

    part[o, t] = sum over the steps of this block of  value[o, i] * x[t, i]

Decoding must keep up with memory: at 4.8 TB/s a multiprocessor receives 21 bytes in a cycle and
executes 128 instructions of a thread, so int8 has 6 for each number and int4 has 3.  Three tricks
keep it at 2.5, all overhead of a step of 256 numbers included (counted in the machine code):

- Weights are read as words of 16 bits, which ldmatrix hands out; a word holds P = 2 or 4 numbers,
  and the numbers at one place of all words of a group form a plane.  Each plane is one operand of
  wgmma, and `x` is reordered to match.
- 0x4300 is 128 in bfloat16 and its seven lowest bits count on from there, so `word & 0x7f | 0x4300`
  is 128 plus a number.  What the eighth bit stands for is subtracted.
- The constant 0x4300 arrives with the arguments: the assembler joins `and` with `or` into one
  instruction only if one of their operands is in a register.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Int16, Int32, Num

from rtp_jax.kernels.quantized_matmul.mosaic_plan import GROUP, Plan, Tiling, sums_groups
from rtp_jax.quant.schemes import INT4_OFFSET, Scheme

BIAS = 0x4300  # 128 in bfloat16
MINUS_16 = 0xC180  # and its eighth bit is set, so that exclusive or halves it
MATRIX = plgpu.Layout.WGMMA
BY_ROW = MATRIX.reduce(1)
FETCH_REGISTERS = 32
Sums = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]


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


class Scalars(NamedTuple):
    """Numbers that a block reads from memory."""

    layer: Int32[Array, "1"]
    tokens: Int32[Array, "1"]  # how many matter
    bias: Int32[Array, "1"]  # `BIAS`


class Refs(NamedTuple):
    """What a block sees, in the order that the kernel receives it."""

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
    decoded: Any = None  # where simulated


def stream(
    x: Num[Array, "tokens inner"],
    values: Num[Array, "layers outer words"],
    scales: Float[Array, "layers outer groups"],
    scalars: Scalars,
    job: Job,
) -> Num[Array, "parts outer tokens"]:
    """Run a plan.

    Args:
      x: bfloat16, reordered by planes; int8 or float8 for a dynamic scheme.
      values: int16 words of a weight-only scheme; int8 or float8 for a dynamic scheme.
      scales: of the groups of int4; otherwise not read.
      scalars: three arrays, because joining them would be one more kernel.
      job: what is static.

    Returns:
      Parts of sums in float32, or int32 for int8 times int8.  Parts that the plan does not use are
      undefined, and so are tiles of tokens that do not matter.
    """
    tiling = job.tiling
    _, outer, words = values.shape
    scratch = [
        _stages(job, (tiling.tokens, tiling.inner), x.dtype),
        _stages(job, (tiling.outer, tiling.inner * words // x.shape[1]), values.dtype),
        plgpu.Barrier(num_arrivals=2, num_barriers=tiling.stages),
        plgpu.Barrier(num_arrivals=tiling.warpgroups, num_barriers=tiling.stages),
    ]
    if job.interpret and job.planes > 1:
        shape = (tiling.warpgroups, tiling.rows, GROUP // job.planes)
        scratch.append(plgpu.SMEM(shape, x.dtype))

    def streamed_matmul(*refs):  # the name that compiled programs show
        block = Block(Refs(*refs), job)

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
        scratch_types=scratch,
        interpret=job.interpret,
    )(x, values, scales, *scalars)


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
        self.layer, self.bias = refs.layer[0], refs.bias[0].astype(jnp.int16)
        tiles = jnp.minimum(pl.cdiv(refs.tokens[0], job.tiling.tokens), job.plan.token_tiles)
        live = tiles * (job.plan.outer_tiles * job.plan.steps)
        self.first = self.number * job.plan.quota
        self.last = jnp.maximum(jnp.minimum(self.first + job.plan.quota, live), self.first)

    def fetch(self) -> None:
        """Fill stages as they become empty."""
        refs, tiling, steps = self.refs, self.job.tiling, self.job.plan.steps
        words = refs.value_stages.shape[2]

        def fill(step, slot):
            tile = jax.lax.div(step, steps)
            along = step - tile * steps
            rows, tokens = self._spans(tile)

            @pl.when(step - self.first >= tiling.stages)
            def _():
                plgpu.barrier_wait(refs.empty.at[slot])

            inner = pl.ds(along * tiling.inner, tiling.inner)
            plgpu.copy_gmem_to_smem(
                refs.values.at[self.layer, rows, pl.ds(along * words, words)],
                refs.value_stages.at[slot],
                refs.full.at[slot],
            )
            plgpu.copy_gmem_to_smem(
                refs.x.at[tokens, inner], refs.x_stages.at[slot], refs.full.at[slot]
            )
            return self._next(slot)

        jax.lax.fori_loop(self.first, self.last, fill, jnp.int32(0))
        for stage in range(tiling.stages):  # no signal may be left behind

            @pl.when(stage < self.last - self.first)
            def _(stage=stage):
                plgpu.barrier_wait(refs.empty.at[stage])

    def multiply(self) -> None:
        """Sum up every tile that the piece of the line touches, and store its part."""
        refs, tiling, plan = self.refs, self.job.tiling, self.job.plan
        first_tile = jax.lax.div(self.first, plan.steps)

        def sum_tile(number, slot):
            tile = first_tile + number
            begin = jnp.maximum(self.first, tile * plan.steps)
            end = jnp.minimum(self.last, (tile + 1) * plan.steps)
            rows, tokens = self._spans(tile)
            rows = pl.ds(rows.start + self.warpgroup * tiling.rows, tiling.rows)
            if sums_groups(self.job.scheme):
                along = begin - tile * plan.steps
                total, slot = self._sum_groups(begin, end, slot, (rows, along))
            else:
                total, slot = self._sum_steps(begin, end, slot)
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

    def _next(self, slot):
        return jnp.where(slot == self.job.tiling.stages - 1, 0, slot + 1)

    def _sum_steps(self, begin, end, slot):
        """Sum steps of one tile where scales can wait until the end."""
        tiling, refs = self.job.tiling, self.refs
        groups = tiling.inner // GROUP
        shape = (tiling.rows, tiling.tokens)
        sums = refs.parts.dtype

        def run(total):
            def step(_, slot):
                plgpu.barrier_wait(refs.full.at[slot])
                for group in range(groups):
                    self._add_group(total, slot, group)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(refs.empty.at[slot])
                return self._next(slot)

            after = jax.lax.fori_loop(begin, end, step, slot)
            return total[...], after

        return pl.run_scoped(run, Sums(shape, sums))

    def _sum_groups(self, begin, end, slot, at):
        """Sum steps of one tile group by group, each with its scale if there are any."""
        tiling, refs = self.job.tiling, self.refs
        (rows, along), groups = at, tiling.inner // GROUP
        shape = (tiling.rows, tiling.tokens)

        def step(index, carry):
            total, slot = carry
            column = (along + index - begin) * groups
            scales = [
                plgpu.load(
                    refs.scales.at[self.layer, rows, column + group], layout=BY_ROW, optimized=False
                )
                for group in range(groups)
                if self.job.scheme.group is not None
            ]
            plgpu.barrier_wait(refs.full.at[slot])
            for group in range(groups):

                def run(part, group=group):
                    self._add_group(part, slot, group)
                    return part[...]

                part = pl.run_scoped(run, Sums(shape, jnp.float32))
                if scales:
                    part *= jax.lax.broadcast_in_dim(scales[group], shape, (0,))
                total += part
            plgpu.barrier_arrive(refs.empty.at[slot])
            return total, self._next(slot)

        zeros = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), MATRIX)
        return jax.lax.fori_loop(begin, end, step, (zeros, slot))

    def _add_group(self, total, slot, group: int) -> None:
        """Add the product of 128 numbers along inner; wgmma is on its way when this returns."""
        refs, rows = self.refs, self.job.tiling.rows
        mine = pl.ds(self.warpgroup * rows, rows)
        planes = self.job.planes
        width = GROUP // planes

        def of_x(plane: int):
            columns = pl.ds(group * GROUP + plane * width, width)
            return refs.x_stages.at[slot, :, columns].transpose((1, 0))

        if planes == 1:
            columns = pl.ds(group * GROUP, GROUP)
            plgpu.wgmma(total, refs.value_stages.at[slot, mine, columns], of_x(0))
            return
        words = refs.value_stages[slot, mine, pl.ds(group * width, width)]
        for plane in range(planes):
            numbers = decode(words, plane, self.job.scheme.bits, self.bias)
            if refs.decoded is None:
                plgpu.wgmma(total, numbers, of_x(plane))
            else:  # the simulator knows wgmma from shared memory only
                mirror = refs.decoded.at[self.warpgroup]
                mirror[...] = numbers
                plgpu.commit_smem()
                plgpu.wgmma(total, mirror, of_x(plane))


def decode(
    words: Int16[Array, "rows width"], plane: int, bits: int, bias: Int16[Array, ""]
) -> BFloat16[Array, "rows width"]:
    """Decode one plane of words: int8 as it is, int4 less its offset."""
    if plane * bits >= 8:  # exchanging bytes is one instruction, and shifting is four
        words = jax.lax.shift_right_logical(words, jnp.int16(8)) | (words << jnp.int16(8))
    if bits == 8:
        return _float(words, 0x7F, bias) - _float(words, 0x80, bias)
    if plane % 2 == 0:
        return _float(words, 0x0F, bias) - jnp.bfloat16(128 + INT4_OFFSET)
    # Three bits follow 128 in steps of 16.  The fourth halves -16, as it is part of an exponent.
    low = _float(words, 0x70, bias) * jnp.bfloat16(1 / 16)
    high = (words & jnp.int16(0x80)) ^ (bias ^ jnp.int16(_signed(BIAS ^ MINUS_16)))
    return low + jax.lax.bitcast_convert_type(high, jnp.bfloat16)


def _signed(word: int) -> int:
    return word - 2**16 if word >= 2**15 else word


def _float(
    words: Int16[Array, "rows width"], mask: int, bias: Int16[Array, ""]
) -> BFloat16[Array, "rows width"]:
    """Read the bits under a mask as what follows 128, or for the eighth bit as 128 or 256."""
    return jax.lax.bitcast_convert_type((words & jnp.int16(mask)) | bias, jnp.bfloat16)
