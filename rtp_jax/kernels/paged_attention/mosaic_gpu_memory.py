"""What a program of the Mosaic GPU kernel works on: its arrays, buffers and barriers.

Read next: `mosaic_gpu_walk.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int32

from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import (
    HEADER,
    RECORD,
    ROWS,
    Problem,
    Tiling,
)

Ref = Any  # a reference to an array or a part of it, or a barrier; None where it is not needed
COMPUTE = jnp.dtype(jnp.bfloat16)  # what the tensor cores multiply


class Inputs(NamedTuple):
    """Arrays in device memory."""

    query: Ref  # [kv_heads, rows, head_dim]
    pages: Ref  # [pages * layers * 2 * kv_heads * page_size, head_dim]
    scales: Ref  # [pages * layers * 2 * kv_heads * page_size]
    work: Ref  # [words]
    table: Ref  # [sequences * width]
    sinks: Ref  # [kv_heads * ROWS], times log2(e)
    out: Ref  # [kv_heads, out_rows, head_dim]
    log_sum: Ref  # [kv_heads, out_rows], base 2; only where tiles are parts


class Shared(NamedTuple):
    """Buffers in shared memory: the first axis counts members or stages of all teams."""

    query: Ref  # [members, ROWS, head_dim]
    key: Ref  # [stages, page_size, head_dim], as pages hold it
    value: Ref
    key_scale: Ref  # [stages, page_size]
    value_scale: Ref
    numbers: Ref  # [members, page_size, head_dim], decoded from key or value
    out: Ref  # [members, ROWS, head_dim], row by row
    log_sum: Ref  # [members, ROWS]
    sinks: Ref  # [members, ROWS]
    weights: Ref  # [members, ROWS, page_size]


class Signals(NamedTuple):
    """Barriers; `_full` says that copies arrived, `_free` that nobody reads the buffer."""

    query_full: Ref  # [members]
    query_free: Ref  # [members]
    key_full: Ref  # [stages]
    key_free: Ref
    value_full: Ref
    value_free: Ref
    cleaned: Ref  # [teams]


class Tile(NamedTuple):
    """A tile of the list, for one KV head."""

    head: Int32[Array, ""]
    sequence: Int32[Array, ""]
    begin: Int32[Array, ""]
    end: Int32[Array, ""]
    query_row: Int32[Array, ""]
    out_row: Int32[Array, ""]
    first: Int32[Array, ""]
    tokens: Int32[Array, ""]
    opens: Int32[Array, ""]


class Warpgroup(NamedTuple):
    """One warpgroup of a program: what it sees, and where it stands."""

    inputs: Inputs
    shared: Shared
    signals: Signals
    problem: Problem
    tiling: Tiling
    team: Int32[Array, ""]
    number: Int32[Array, ""]  # among the members of all teams
    item: Int32[Array, ""]  # of its first turn: a tile for one KV head

    @property
    def member(self) -> Int32[Array, ""]:
        """Its number within the team."""
        return self.number % self.tiling.members

    @property
    def step(self) -> int:
        """From the item of one turn to the next."""
        return self.tiling.programs * self.tiling.teams

    def turns(self) -> Int32[Array, ""]:
        """How many items fall to the team."""
        items = self.inputs.work[0] * self.problem.kv_heads
        return jax.lax.div(jnp.maximum(items - self.item, 0) + self.step - 1, self.step)

    def tile(self, turn: Int32[Array, ""]) -> Tile:
        """Read what to do in a turn: the heads of one tile come one after the other."""
        item = self.item + turn * self.step
        record = HEADER + RECORD * jax.lax.div(item, self.problem.kv_heads)
        fields = [self.inputs.work[record + field] for field in range(RECORD)]
        return Tile(jax.lax.rem(item, self.problem.kv_heads), *fields)

    def stage(self, count: Int32[Array, ""]) -> Int32[Array, ""]:
        """The stage of the team's page number `count`."""
        return self.team * self.tiling.stages + jax.lax.rem(count, self.tiling.stages)


def buffers(problem: Problem, tiling: Tiling, *, interpreted: bool) -> list:
    """Describe the shared memory of a program, in the order of `Shared`."""
    members, stages, page = tiling.all_members, tiling.all_stages, problem.page_size
    rows = (members, ROWS, problem.head_dim)
    narrow = problem.storage.itemsize == 1
    held = _swizzled((stages, page, problem.head_dim), problem.storage)
    scales = plgpu.SMEM((stages, page), jnp.float32) if problem.scaled else None
    numbers = _swizzled((members, page, problem.head_dim), COMPUTE)
    by_row = plgpu.SMEM((members, ROWS), jnp.float32)
    weights = _swizzled((members, ROWS, page), COMPUTE)
    return [
        _swizzled(rows, COMPUTE),
        held,
        held,
        scales,
        scales,
        numbers if narrow else None,
        plgpu.SMEM(rows, jnp.float32 if problem.parts else COMPUTE),
        by_row if problem.parts else None,
        by_row if problem.has_sinks else None,
        weights if interpreted else None,  # the interpreter multiplies nothing in registers
    ]


def _swizzled(shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """Describe a buffer whose rows lie in the pattern that tensor cores read without conflicts."""
    size = jnp.dtype(dtype).itemsize
    span = min(shape[-1], 128 // size)
    tiling = plgpu.TilingTransform((8, span))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(span * size)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tiling, swizzle))


def barriers(problem: Problem, tiling: Tiling) -> list:
    """Describe the barriers of a program, in the order of `Signals`."""
    members, stages = tiling.all_members, tiling.all_stages
    alone = plgpu.Barrier(num_barriers=members)
    full = plgpu.Barrier(num_arrivals=2 if problem.scaled else 1, num_barriers=stages)
    free = plgpu.Barrier(num_arrivals=tiling.members, num_barriers=stages)
    cleaned = plgpu.Barrier(num_arrivals=tiling.members, num_barriers=tiling.teams)
    query = plgpu.Barrier(num_arrivals=2 if problem.has_sinks else 1, num_barriers=members)
    return [query, alone, full, free, full, free, cleaned]
