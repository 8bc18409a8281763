"""The Mosaic GPU kernel of paged attention for Hopper: tiles of queries walk over their pages.

Read `mosaic_gpu_tiles.py`, which makes the list of tiles, and `mosaic_gpu_memory.py` first.

A program has one or two teams.  One warpgroup of a team fetches pages with the copy engine into a
ring of stages in shared memory; its members multiply them on the tensor cores, 64 rows of queries
each, and keep a running softmax in registers (`mosaic_gpu_page.py`).

Rows are tokens times the query heads that share a KV head, so a page is read once for all of them.
A decoding tile fills only `group` of its 64 rows: the tensor cores idle anyway, as it is bound by
reading pages.  What keeps the memory busy is the bytes on their way: an H200 needs 24 KB for each
SM at 4.8 TB/s and 650 ns, and two teams with two stages of a key and a value page have 128 KB.
Tiles of chunks are bound by arithmetic; two members share each page, which halves what the ring
must read from the L2 cache.

Source: Dao 2023, FlashAttention-2 (arXiv:2307.08691), section 3; Shah et al. 2024,
FlashAttention-3 (arXiv:2407.08608), section 3.1.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num

from rtp_jax.kernels.paged_attention.mosaic_gpu_memory import (
    COMPUTE,
    Inputs,
    Ref,
    Shared,
    Signals,
    Tile,
    Warpgroup,
    barriers,
    buffers,
)
from rtp_jax.kernels.paged_attention.mosaic_gpu_page import MATRIX, columns, opening, page
from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import ROWS, Problem, Tiling


def walk(
    arrays: tuple[Num[Array, "..."], ...],
    *,
    problem: Problem,
    tiling: Tiling,
    out_rows: int,
    interpret: plgpu.InterpretGPUParams | None = None,
) -> list[Float[Array, "kv_heads out_rows *head_dim"]]:
    """Run the list of tiles.

    Args:
      arrays: those of `Inputs` that come in, in its order.
      problem: what is computed.
      tiling: how it is divided.
      out_rows: rows of the result for each KV head.
      interpret: simulate on the CPU; None: compile.

    Returns:
      Rows as the tiles place them, and the base-2 logarithm of each row's sum of exponentials.
      Parts of tokens are float32 and normalized; a chunk's rows are bfloat16 and have no
      logarithms.  Rows that no tile fills are undefined.
    """

    def program(inputs: Inputs, shared: Shared, signals: Signals):
        index, members = jax.lax.axis_index("warpgroup"), tiling.all_members
        first = jax.lax.axis_index("program") * tiling.teams

        @pl.when(index >= members)
        def _fetching():
            plgpu.set_max_registers(tiling.fetch_registers, action="decrease")
            team = index - members
            _fetch(Warpgroup(inputs, shared, signals, problem, tiling, team, index, first + team))

        @pl.when(index < members)
        def _attending():
            plgpu.set_max_registers(tiling.registers, action="increase")
            team = jax.lax.div(index, tiling.members)
            _attend(Warpgroup(inputs, shared, signals, problem, tiling, team, index, first + team))

    def paged_attention_walk(*refs: Ref):
        pl.run_scoped(
            lambda shared, signals: program(Inputs(*refs), Shared(*shared), Signals(*signals)),
            buffers(problem, tiling, interpreted=interpret is not None),
            barriers(problem, tiling),
            collective_axes="warpgroup",
        )

    out = (problem.kv_heads, out_rows, problem.head_dim)
    log_sum = (problem.kv_heads, out_rows if problem.parts else 8)
    return plgpu.kernel(
        paged_attention_walk,
        out_type=[
            jax.ShapeDtypeStruct(out, jnp.float32 if problem.parts else COMPUTE),
            jax.ShapeDtypeStruct(log_sum, jnp.float32),
        ],
        grid=(tiling.programs,),
        grid_names=("program",),
        num_threads=tiling.teams * (tiling.members + 1),
        thread_name="warpgroup",
        # No reduction crosses warps: the rows of a softmax lie within one.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        interpret=interpret,
    )(*arrays)


def _fetch(me: Warpgroup):
    """Copy the pages of the team's tiles into the ring, as soon as a stage is free."""
    problem, shared, signals = me.problem, me.shared, me.signals
    size = problem.page_size

    def copy(block: Int32[Array, ""], stage: Int32[Array, ""], kind: str):
        to, scale_to, full, free = {
            "key": (shared.key, shared.key_scale, signals.key_full, signals.key_free),
            "value": (shared.value, shared.value_scale, signals.value_full, signals.value_free),
        }[kind]
        rows = pl.ds(pl.multiple_of(block * size, size), size)
        plgpu.barrier_wait(free.at[stage])
        plgpu.copy_gmem_to_smem(me.inputs.pages.at[rows], to.at[stage], full.at[stage])
        if scale_to is not None:
            plgpu.copy_gmem_to_smem(me.inputs.scales.at[rows], scale_to.at[stage], full.at[stage])

    def fetch_tile(turn: Int32[Array, ""], fetched: Int32[Array, ""]):
        tile = me.tile(turn)
        if problem.parts:
            rows = pl.ds(pl.multiple_of(tile.query_row, 8), problem.rows)
            plgpu.barrier_wait(signals.query_free.at[me.team])
            _copy_queries(me, tile, rows, shared.query.at[me.team, pl.ds(0, problem.rows)], me.team)

        def fetch_page(page: Int32[Array, ""], fetched: Int32[Array, ""]):
            number = me.inputs.table[tile.sequence * problem.width + page]
            layer = number * problem.layers + me.inputs.work[1]
            block = layer * (2 * problem.kv_heads) + tile.head
            copy(block, me.stage(fetched), "key")
            copy(block + problem.kv_heads, me.stage(fetched), "value")
            return fetched + 1

        return jax.lax.fori_loop(tile.begin, tile.end, fetch_page, fetched)

    jax.lax.fori_loop(0, me.turns(), fetch_tile, jnp.int32(0))
    for stage in range(me.tiling.stages):  # nobody reads when the program ends
        plgpu.barrier_wait(signals.key_free.at[me.stage(jnp.int32(stage))])
        plgpu.barrier_wait(signals.value_free.at[me.stage(jnp.int32(stage))])
    if problem.parts:
        plgpu.barrier_wait(signals.query_free.at[me.team])


def _copy_queries(me: Warpgroup, tile: Tile, rows: pl.Slice, to: Ref, index: Int32[Array, ""]):
    """Copy queries of a tile, and with them the sinks of its heads, for member `index`."""
    full = me.signals.query_full.at[index]
    plgpu.copy_gmem_to_smem(me.inputs.query.at[tile.head, rows], to, full)
    if me.shared.sinks is not None:
        sinks = me.inputs.sinks.at[pl.ds(tile.head * ROWS, ROWS)]
        plgpu.copy_gmem_to_smem(sinks, me.shared.sinks.at[index], full)


def _attend(me: Warpgroup):
    """Let the member's rows of each tile attend to the tile's pages, and write the result."""
    problem, shared, signals = me.problem, me.shared, me.signals
    for stage in range(me.tiling.stages):  # nothing is in use yet
        plgpu.barrier_arrive(signals.key_free.at[me.stage(jnp.int32(stage))])
        plgpu.barrier_arrive(signals.value_free.at[me.stage(jnp.int32(stage))])
    if problem.parts:
        plgpu.barrier_arrive(signals.query_free.at[me.number])

    def attend_tile(turn: Int32[Array, ""], seen: Int32[Array, ""]):
        tile = me.tile(turn)
        before = me.member * problem.tokens  # tokens of the tile that other members have
        if not problem.parts:
            # Any row may be the first here, so rows come as they are and are laid out again.
            rows = pl.ds(tile.query_row + before * problem.group, ROWS)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            _copy_queries(me, tile, rows, shared.out.at[me.number], me.number)
        plgpu.barrier_wait(signals.query_full.at[me.number])
        if not problem.parts:
            query = plgpu.load(shared.out.at[me.number], (), layout=MATRIX, optimized=False)
            shared.query[me.number] = query
            plgpu.commit_smem()
        state = *opening(me, tile), seen
        position = plgpu.broadcasted_iota(jnp.int32, (ROWS, problem.page_size), 0, layout=MATRIX)
        position = jax.lax.div(position, problem.group) + tile.first + before
        mixed, high, total, seen = jax.lax.fori_loop(
            tile.begin,
            tile.end,
            lambda number, state: page(me, tile, position, number, state),
            state,
        )
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for some, block in zip(columns(problem), mixed, strict=True):
            block *= jax.lax.broadcast_in_dim(1.0 / total, block.shape, [0])
            shared.out[me.number, :, some] = block.astype(shared.out.dtype)
        if shared.log_sum is not None:
            shared.log_sum[me.number] = high + jnp.log2(total)
        plgpu.commit_smem()  # also behind the reading of sinks, which may be overwritten now
        if problem.parts:
            plgpu.barrier_arrive(signals.query_free.at[me.number])
        _write(me, me.tile(turn), before)  # read again: registers are short in the loop
        return seen

    jax.lax.fori_loop(0, me.turns(), attend_tile, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)


def _write(me: Warpgroup, tile: Tile, before: Int32[Array, ""]):
    """Copy the result from shared memory to its rows."""
    problem, inputs, out = me.problem, me.inputs, me.shared.out.at[me.number]
    if me.shared.log_sum is not None:
        used, rows = pl.ds(0, problem.rows), pl.ds(pl.multiple_of(tile.out_row, 8), problem.rows)
        plgpu.copy_smem_to_gmem(out.at[used], inputs.out.at[tile.head, rows])
        log_sum = me.shared.log_sum.at[me.number]
        plgpu.copy_smem_to_gmem(log_sum.at[used], inputs.log_sum.at[tile.head, rows])
        return
    group, tokens = problem.group, problem.tokens
    left = jnp.clip(tile.tokens - before, 0, tokens)
    first = tile.out_row + before * group

    @pl.when(left == tokens)
    def _whole():
        rows = pl.ds(first, tokens * group)
        plgpu.copy_smem_to_gmem(out.at[pl.ds(0, tokens * group)], inputs.out.at[tile.head, rows])

    @pl.when(left < tokens)
    def _token_by_token():  # the next rows belong to another sequence
        @pl.loop(0, left)
        def _(token: Int32[Array, ""]):
            rows = pl.ds(first + token * group, group)
            source = out.at[pl.ds(token * group, group)]
            plgpu.copy_smem_to_gmem(source, inputs.out.at[tile.head, rows])
