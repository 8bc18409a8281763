"""Paged attention on Hopper GPUs: what it can serve, and how a step becomes two runs of a kernel.

Read next: `mosaic_gpu_tiles.py`, `mosaic_gpu_walk.py`.

Sequences that bring one token are bound by reading pages: their pages are divided among all SMs
and the parts merged.  Sequences that bring more are bound by arithmetic: their tokens are divided.
Both runs are part of every step, and one that finds nothing to do returns at once.

Pages hold bfloat16, or its bits as uint16: XLA passes such an array on as it is, without a copy.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.compat import HAS_MOSAIC_GPU
from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import (
    ROWS,
    WIDE,
    Places,
    Problem,
    Tiling,
    chunk_tiles,
    decode_tiles,
    is_decoding,
    work,
)
from rtp_jax.kernels.paged_attention.shape import SCALES, AttentionShape
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs, from_bits
from rtp_jax.late_imports import late

kernel = late("rtp_jax.kernels.paged_attention.mosaic_gpu_walk")

PLATFORMS = ("cuda",)
STORED = ("bfloat16", "uint16", "int8", "uint8")
HEAD_DIMS = (64, 128)  # of 256, the result alone fills half the registers: it spilled 1 KB
PAGE_SIZE = 64  # a page of one head is what one copy brings, and one instruction multiplies
SMS = 132  # of an H100 or H200
SHARED_BYTES = 227 * 1024  # of a program
SMALL_BYTES = 2048  # of them for barriers and vectors
MOST_STAGES = 4
LEAST_SPLITS = 8  # of the longest sequence, however large the batch


def obstacle(call: AttentionShape) -> str | None:
    """Say in words why this implementation cannot serve `call`, or return None if it can."""
    if call.platform not in PLATFORMS:
        return f"it is written for cuda and the target is {call.platform}"
    if not HAS_MOSAIC_GPU:
        return f"it needs jax 0.11 or newer and this is {jax.__version__}"
    if call.dtype != jnp.bfloat16:
        return f"it multiplies bfloat16 and the queries are {call.dtype}"
    if call.storage.name not in STORED:
        return f"it reads pages of {', '.join(STORED)} and these hold {call.storage}"
    if call.head_dim not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        return f"it is written for heads of {sizes} and these have {call.head_dim}"
    if call.page_size != PAGE_SIZE:
        return f"it is written for pages of {PAGE_SIZE} tokens and these have {call.page_size}"
    if SCALES in call.features and call.storage.itemsize > 1:
        return f"it reads scales with pages of a byte a number and these hold {call.storage}"
    if call.group > ROWS:
        return f"at most {ROWS} query heads may share a KV head and here {call.group} do"
    return None


class Call(NamedTuple):
    """What both runs of a step share."""

    pages: KVPages  # [page_rows, head_dim]
    scales: KVScales  # [page_rows], or one page of zeros
    table: Int32[Array, " entries"]
    sinks: Float[Array, " sink_rows"]
    layer: Int32[Array, ""]
    window: Int32[Array, ""] | int
    interpret: object


def paged_attention(
    query: Float[Array, "tokens heads head_dim"],
    pages: KVPages,
    layer: Int32[Array, ""],
    step: StepInputs,
    *,
    scale: float,
    sliding_window: Int32[Array, ""] | int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    scales: KVScales | None = None,
    tilings: tuple[Tiling, Tiling] | None = None,
    interpret: object = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Let each new token attend to its sequence: every token before it, and itself.

    `tilings` are those of decoding and of chunks; None: `default_tilings`.  `interpret`, an
    `InterpretGPUParams`, simulates on the CPU, where every program costs seconds.
    """
    tokens, heads, head_dim = query.shape
    layers, kv_heads, page_size = pages.shape[1], pages.shape[3], pages.shape[4]
    numbers = from_bits(pages) if pages.dtype == jnp.uint16 else pages
    problem = Problem(
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        layers=layers,
        width=step.page_table.shape[1],
        storage=jnp.dtype(numbers.dtype),
        scale=scale,
        soft_cap=soft_cap,
        windowed=sliding_window is not None,
        has_sinks=sinks is not None,
        scaled=scales is not None,
        parts=True,
    )
    call = Call(
        pages=numbers.reshape(-1, head_dim),
        scales=jnp.zeros(page_size) if scales is None else scales.reshape(-1),
        table=step.page_table.reshape(-1),
        sinks=_sinks_by_row(problem, sinks),
        layer=layer,
        window=WIDE if sliding_window is None else jnp.minimum(sliding_window, WIDE),
        interpret=interpret,
    )
    decoding, chunks = tilings or default_tilings(problem, step.query_count.size)
    if interpret and not tilings:
        decoding, chunks = decoding._replace(programs=1), chunks._replace(programs=1)
    by_head = query.reshape(tokens, kv_heads, problem.group, head_dim)
    single = _decode(by_head, step, call, problem, decoding)
    out = _prefill(by_head, step, call, problem._replace(parts=False), chunks)
    alone = is_decoding(step)[:, None, None, None]
    out = jnp.where(alone, single[step.sequence_of], out)
    live = jnp.arange(tokens) < step.num_tokens  # nobody wrote the rows of padding
    return jnp.where(live[:, None, None], out.reshape(query.shape), 0)


def default_tilings(problem: Problem, sequences: int) -> tuple[Tiling, Tiling]:
    """Divide decoding and chunks among programs, by reasoning; tuning may know better."""
    # Parts: enough for all teams when there are few sequences, longer ones when there are many.
    busy = sequences * problem.kv_heads
    splits = max(LEAST_SPLITS, math.ceil(8 * SMS / busy))
    split_pages = max(min(max(busy // 32, 2), 8), math.ceil(problem.width / splits))
    decoding = Tiling(
        programs=SMS,
        teams=2,
        members=1,
        stages=0,
        registers=232,  # 512 for all warpgroups together
        fetch_registers=24,
        split_pages=split_pages,
    )
    chunks = decoding._replace(teams=1, members=2, registers=240, split_pages=0)
    if problem.storage.itemsize == 1:  # decoding pages takes a few registers more than 240
        chunks = chunks._replace(members=1, registers=256)
    return _filled(problem, decoding), _filled(problem._replace(parts=False), chunks)


def _filled(problem: Problem, tiling: Tiling) -> Tiling:
    """Use shared memory up for stages, of which more than a few hide nothing more."""
    numbers = ROWS * problem.head_dim
    out_bytes = 4 if problem.parts else 2
    decoded_bytes = 2 if problem.storage.itemsize == 1 else 0
    fixed = tiling.all_members * numbers * (2 + out_bytes + decoded_bytes) + SMALL_BYTES
    stage = 2 * problem.page_size * problem.head_dim * problem.storage.itemsize
    stage += 2 * problem.page_size * 4 if problem.scaled else 0
    stages = (SHARED_BYTES - fixed) // (tiling.teams * stage)
    return tiling._replace(stages=min(stages, MOST_STAGES))


def _sinks_by_row(
    problem: Problem, sinks: Float[Array, " heads"] | None
) -> Float[Array, " sink_rows"]:
    """Lay out the sinks as the rows of a warpgroup lie, which begin with a whole token."""
    if sinks is None:
        return jnp.zeros(ROWS)
    scores = sinks.astype(jnp.float32).reshape(problem.kv_heads, problem.group) / math.log(2)
    return scores[:, jnp.arange(ROWS) % problem.group].reshape(-1)


def _decode(
    query: Float[Array, "tokens kv_heads group head_dim"],
    step: StepInputs,
    call: Call,
    problem: Problem,
    tiling: Tiling,
) -> Float[Array, "sequences kv_heads group head_dim"]:
    """Attend from the first token of every sequence that brings no other."""
    rows = problem.rows
    single = query[step.query_start].transpose(1, 0, 2, 3)
    single = jnp.pad(single, ((0, 0), (0, 0), (0, rows - problem.group), (0, 0)))
    tiles, num, places = decode_tiles(
        step, problem.page_size, call.window, split_pages=tiling.split_pages, rows=rows
    )
    words = work(tiles, num, call.layer, call.window)
    parts, log_sums = kernel.walk(
        _arrays(single, words, call),
        problem=problem,
        tiling=tiling,
        out_rows=tiles.first.size * rows,
        interpret=call.interpret,
    )
    parts = parts.reshape(problem.kv_heads, -1, rows, problem.head_dim)[:, :, : problem.group]
    log_sums = log_sums.reshape(problem.kv_heads, -1, rows)[:, :, : problem.group]
    return _merge(parts, log_sums, places).astype(query.dtype)


def _merge(
    parts: Float[Array, "kv_heads tiles group head_dim"],
    log_sums: Float[Array, "kv_heads tiles group"],
    places: Places,
) -> Float[Array, "sequences kv_heads group head_dim"]:
    """Add up the parts of each sequence by the logarithms (base 2) of their sums."""
    splits = parts.shape[1] // places.parts.size
    index = places.first[:, None] + jnp.arange(splits)
    index = jnp.minimum(index, parts.shape[1] - 1)  # [sequences, splits]
    live = (jnp.arange(splits) < places.parts[:, None])[None, :, :, None]
    logs = jnp.where(live, log_sums[:, index], -jnp.inf)
    high = jnp.maximum(logs.max(2, keepdims=True), -1e30)  # of a sequence without parts
    weights = jnp.exp2(logs - high)
    weights /= jnp.maximum(weights.sum(2, keepdims=True), 1e-30)
    found = jnp.where(live[..., None], parts[:, index], 0)  # nobody wrote the rest
    return jnp.einsum("hskg,hskgd->shgd", weights, found)


def _prefill(
    query: Float[Array, "tokens kv_heads group head_dim"],
    step: StepInputs,
    call: Call,
    problem: Problem,
    tiling: Tiling,
) -> Float[Array, "tokens kv_heads group head_dim"]:
    """Attend from every token of the sequences that bring more than one; the rest is undefined."""
    tokens, kv_heads, group, head_dim = query.shape
    tile_tokens = problem.tokens * tiling.members
    tiles, num = chunk_tiles(step, problem.page_size, call.window, tokens=tile_tokens, group=group)
    by_head = query.transpose(1, 0, 2, 3).reshape(kv_heads, tokens * group, head_dim)
    padded = jnp.pad(by_head, ((0, 0), (0, ROWS * tiling.members), (0, 0)))  # tiles may reach past
    out, _ = kernel.walk(
        _arrays(padded, work(tiles, num, call.layer, call.window), call),
        problem=problem,
        tiling=tiling,
        out_rows=tokens * group,
        interpret=call.interpret,
    )
    return out.reshape(kv_heads, tokens, group, head_dim).swapaxes(0, 1)


def _arrays(
    query: Float[Array, "kv_heads *rows head_dim"], words: Int32[Array, " words"], call: Call
) -> tuple[Array, ...]:
    """Put together what the kernel reads, in its order."""
    rows = query.reshape(query.shape[0], -1, query.shape[-1])
    return rows, call.pages, call.scales, words, call.table, call.sinks
