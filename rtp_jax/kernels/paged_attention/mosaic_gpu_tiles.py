"""Who does what in the Mosaic GPU kernel: a list of tiles, made on the device from the step.

Read next: `mosaic_gpu_walk.py`.

A tile is a few consecutive tokens of one sequence and the pages that they look at.  The kernel
runs a fixed number of programs which take tiles from the list in turns, so shapes are static and
the work is not: a step without chunks has no chunk tile, a short sequence has few pages.

    tile of decoding:   one token, `split_pages` of its pages; parts are merged afterwards
    tile of a chunk:    as many tokens as fit the rows of a warpgroup, all their pages

Splits lie at multiples of `split_pages`, never where the rest of the batch would have them: what
a token computes does not depend on what shares its batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from rtp_jax.kernels.pages import StepInputs

ROWS = 64  # of queries, for one warpgroup: what its tensor core instruction takes
HEADER = 4  # tiles, layer, window, 0
RECORD = 8  # see `Tiles`
WIDE = jnp.iinfo(jnp.int32).max // 2  # a window that hides nothing


class Problem(NamedTuple):
    """What the kernel computes, as far as it is known while compiling."""

    kv_heads: int
    group: int  # query heads that share a KV head
    head_dim: int
    page_size: int
    layers: int
    width: int  # of the page table
    storage: jnp.dtype  # of the pages
    scale: float
    soft_cap: float | None
    windowed: bool
    has_sinks: bool
    scaled: bool  # pages have scales
    parts: bool  # tiles are parts of one token, to be merged

    @property
    def rows(self) -> int:
        """Rows that a tile of one token has in the arrays: the copy engine wants whole eights."""
        return -(-self.group // 8) * 8

    @property
    def tokens(self) -> int:
        """Tokens that fit the rows of a warpgroup."""
        return ROWS // self.group


class Tiling(NamedTuple):
    """How the kernel divides it; all of it may be tuned."""

    programs: int  # one for each SM, which run until the list is empty
    teams: int  # rings of pages in a program
    members: int  # warpgroups that multiply the pages of one ring
    stages: int  # key and value pages that a ring holds
    registers: int  # of each thread that multiplies, a multiple of 8
    fetch_registers: int  # of each thread that fetches
    split_pages: int  # pages of one part

    @property
    def all_members(self) -> int:
        """Warpgroups of a program that multiply."""
        return self.teams * self.members

    @property
    def all_stages(self) -> int:
        """Stages of all rings of a program."""
        return self.teams * self.stages


class Tiles(NamedTuple):
    """The list.  Pages are counted within their sequence, rows are tokens times group."""

    sequence: Int32[Array, " tiles"]
    begin: Int32[Array, " tiles"]  # first page
    end: Int32[Array, " tiles"]  # behind the last page
    query_row: Int32[Array, " tiles"]  # first row of the queries
    out_row: Int32[Array, " tiles"]  # first row of the result
    first: Int32[Array, " tiles"]  # position of the first token
    tokens: Int32[Array, " tiles"]
    opens: Int32[Array, " tiles"]  # 1 for the first tile of a token, which counts its sink


class Places(NamedTuple):
    """Where the parts of each decoding sequence lie among the tiles."""

    first: Int32[Array, " sequences"]
    parts: Int32[Array, " sequences"]


def work(
    tiles: Tiles, num: Int32[Array, ""], layer: Int32[Array, ""], window: Int32[Array, ""] | int
) -> Int32[Array, " words"]:
    """Lay out a list as the kernel reads it: a header, then one record after the other."""
    header = jnp.stack([num, layer, jnp.asarray(window, jnp.int32), jnp.int32(0)])
    return jnp.concatenate([header, jnp.stack(tiles, axis=1).reshape(-1)])


def decode_tiles(
    step: StepInputs, page_size: int, window: Int32[Array, ""] | int, *, split_pages: int, rows: int
) -> tuple[Tiles, Int32[Array, ""], Places]:
    """List the parts of every sequence that brings one token.

    Args:
      step: its `query_count` is 1 for the sequences meant.
      page_size: tokens of a page.
      window: tokens that a token sees.
      split_pages: pages of one part, a multiple of which every part begins at.
      rows: rows that each sequence has in the queries, and each tile in the result.

    Returns:
      The tiles, of which `num` are in use, and where each sequence has its own.
    """
    sequences, width = step.page_table.shape
    splits = -(-width // split_pages)
    position = jnp.maximum(step.kv_length() - 1, 0)
    begin = jnp.maximum(position - window + 1, 0) // page_size
    end = position // page_size + 1
    opening = begin // split_pages
    parts = jnp.where(step.query_count == 1, -(-end // split_pages) - opening, 0)
    index, sequence, part = _spread(parts, sequences * splits)
    split = (opening[sequence] + part) * split_pages
    tiles = Tiles(
        sequence=sequence,
        begin=jnp.maximum(split, begin[sequence]),
        end=jnp.minimum(split + split_pages, end[sequence]),
        query_row=sequence * rows,
        out_row=index * rows,
        first=position[sequence],
        tokens=jnp.ones_like(index),
        opens=(part == 0).astype(jnp.int32),
    )
    ends = jnp.cumsum(parts)
    return tiles, ends[-1], Places(first=ends - parts, parts=parts)


def chunk_tiles(
    step: StepInputs, page_size: int, window: Int32[Array, ""] | int, *, tokens: int, group: int
) -> tuple[Tiles, Int32[Array, ""]]:
    """List the tiles, of `tokens` tokens or fewer, of every sequence that brings more than one."""
    sequences, step_tokens = step.query_count.size, step.sequence_of.size
    count = jnp.where(step.query_count > 1, step.query_count, 0)
    # Every sequence has at most one tile that is not full, and brings two tokens or more.
    most = step_tokens // tokens + min(sequences, step_tokens // 2)
    parts = -(-count // tokens)
    index, sequence, part = _spread(parts, most)
    before = part * tokens
    left = jnp.minimum(count[sequence] - before, tokens)
    token = step.query_start[sequence] + before
    first = step.kv_length()[sequence] - count[sequence] + before
    tiles = Tiles(
        sequence=sequence,
        begin=jnp.maximum(first - window + 1, 0) // page_size,
        end=(first + left - 1) // page_size + 1,
        query_row=token * group,
        out_row=token * group,
        first=first,
        tokens=left,
        opens=jnp.ones_like(index),
    )
    return tiles, parts.sum()


def is_decoding(step: StepInputs) -> Bool[Array, " tokens"]:
    """Tell for each token whether its sequence brings no other."""
    live = jnp.arange(step.sequence_of.size) < step.num_tokens
    return live & (step.query_count[step.sequence_of] == 1)


def _spread(
    parts: Int32[Array, " sequences"], most: int
) -> tuple[Int32[Array, " tiles"], Int32[Array, " tiles"], Int32[Array, " tiles"]]:
    """Number the parts of all sequences: for each, its sequence and its place within it."""
    index = jnp.arange(most, dtype=jnp.int32)
    ends = jnp.cumsum(parts)
    sequence = jnp.sum(ends[None] <= index[:, None], axis=1, dtype=jnp.int32)
    sequence = jnp.minimum(sequence, parts.size - 1)  # tiles that are not in use
    return index, sequence, index - (ends - parts)[sequence]
