"""How a matmul is divided among the blocks of a Hopper GPU: plain numbers, decided while tracing.

The matrix is cut into tiles of `outer` rows, the tokens into tiles as well, and each pair of them
is summed along `inner` in steps.  All steps of all tiles lie on one line, which is cut into equal
pieces, one for each block, wherever the cuts fall:

    tiles    |---- 0 ----|---- 1 ----|---- 2 ----|---- 3 ----|
    blocks   |=== a ===|=== b ===|=== c ===|=== d ===|== e ==|
    part          0    1   0     1  0     1   0     1    0        of the tile

Reading weights is then spread evenly whatever the shape of the matrix.  A tile that was cut has
several parts, in the order of its blocks, which are added afterwards.

Source: Osama et al. 2023, Stream-K (arXiv:2301.03598), section 4.
"""

import itertools
from typing import NamedTuple

import numpy as np

from rtp_jax.quant.schemes import Scheme

GROUP = 128  # numbers along inner: a step is whole ones of them, with a scale each or several
GROUPS = (32, 64, 128)  # that int4 may have, as whole operands of wgmma are made of them
SHARED_BYTES = 227 * 1024 - 2048  # of a Hopper multiprocessor, less barriers and alignment
ROWS = 64  # of one wgmma
MAX_TOKENS = {32: 64, 64: 128, GROUP: 128}  # by the size of a group, whose sums take registers
# By the number of warpgroups: how many sums a thread may hold, as compiled without spills.
MAX_SUMS = {4: 64, 2: 128, 1: 128}
# The same where a step has several groups: the assembler mixes them, so all their sums are counted.
MAX_SUMS_OF_SMALL_GROUPS = {4: 64, 2: 192, 1: 192}
# What is not moved, guessed: by whether tokens are many, for each (warpgroups, rows).
HANDICAPS = {
    False: {(4, ROWS): 1.0, (2, ROWS): 1.1, (1, ROWS): 1.3},
    True: {(2, 2 * ROWS): 1.0, (2, ROWS): 1.1, (1, ROWS): 2.0},
}
OPEN_SUMS = 24  # of groups that are summed side by side, in a thread
MAX_EQUAL_PARTS = 8
MIN_STEPS = 2  # of a block: fewer would make too many parts


class Tiling(NamedTuple):
    """How the work is cut; every number may be tuned."""

    warpgroups: int  # of a block, that multiply; one more fetches
    rows: int  # of the weight, for each warpgroup
    tokens: int
    inner: int  # numbers along inner that a step reads
    stages: int  # steps that are on their way or in use
    blocks: int = 132  # multiprocessors of the GPU

    @property
    def outer(self) -> int:
        """Rows of the weight that a block holds at a time."""
        return self.warpgroups * self.rows


class Plan(NamedTuple):
    """The line of steps, and where it is cut."""

    steps: int  # of a tile
    outer_tiles: int
    token_tiles: int
    quota: int  # steps of a block
    blocks: int
    parts: int  # of the tile that has most of them

    def used(self) -> np.ndarray:
        """Tell which parts exist, [parts, token_tiles, outer_tiles]."""
        tiles = np.arange(self.token_tiles * self.outer_tiles)
        last = ((tiles + 1) * self.steps - 1) // self.quota - tiles * self.steps // self.quota
        used = np.arange(self.parts)[:, None] <= last
        return used.reshape(self.parts, self.token_tiles, self.outer_tiles)


def plan(tiling: Tiling, bits: int, *, tokens: int, outer: int, inner: int) -> Plan:
    """Cut the line of steps where it costs least; all sizes are whole tiles.

    Even pieces keep all blocks busy, whole tiles or equal parts of them have fewer parts to add.
    """
    steps, outer_tiles, token_tiles = (
        inner // tiling.inner,
        outer // tiling.outer,
        tokens // tiling.tokens,
    )
    tiles = outer_tiles * token_tiles
    quotas = {-(-tiles * steps // tiling.blocks), -(-tiles // tiling.blocks) * steps}
    quotas |= {steps // parts for parts in range(2, MAX_EQUAL_PARTS + 1) if steps % parts == 0}
    first = np.arange(tiles) * steps
    plans = []
    for quota in sorted(quotas):
        blocks = -(-tiles * steps // quota)
        if blocks <= tiling.blocks and quota >= min(MIN_STEPS, steps):
            parts = int(((first + steps - 1) // quota - first // quota).max()) + 1
            plans.append(Plan(steps, outer_tiles, token_tiles, quota, blocks, parts))
    return min(plans, key=lambda plan: _traffic(tiling, plan, bits))


def _traffic(tiling: Tiling, plan: Plan, bits: int) -> int:
    """Count bytes as if every block took as long as the busiest, and parts went through memory."""
    read = plan.quota * tiling.blocks * tiling.outer * tiling.inner * bits // 8
    tile_bytes = 4 * tiling.outer * tiling.tokens
    added = 2 * plan.parts if plan.parts > 1 else 0
    return read + added * tile_bytes * plan.outer_tiles * plan.token_tiles


def default_tiling(scheme: Scheme, *, tokens: int, outer: int, inner: int) -> Tiling:
    """Choose the candidate that moves least, as far as that can be told without a GPU.

    Few tokens are bound by reading weights, and more warps decode them faster.  Many tokens are
    bound by multiplying, and wide tiles in two warpgroups read shared memory least.
    """
    costs = {}
    for tiling in candidates(scheme, tokens=tokens, outer=outer, inner=inner):
        padded = -(-tokens // tiling.tokens) * tiling.tokens
        chosen = plan(tiling, scheme.bits, tokens=padded, outer=outer, inner=inner)
        handicap = HANDICAPS[tiling.tokens > 64].get((tiling.warpgroups, tiling.rows))
        if handicap is not None:
            shallow = 1.05 if tiling.inner == GROUP else 1.0  # a step has its own costs
            costs[tiling] = handicap * shallow * _traffic(tiling, chosen, scheme.bits)
    return min(costs, key=lambda tiling: costs[tiling])


def candidates(scheme: Scheme, *, tokens: int, outer: int, inner: int) -> list[Tiling]:
    """List tilings worth timing: they divide the matrix, and fit shared memory and registers."""
    columns = -(-tokens // MAX_TOKENS[group_size(scheme)])
    tile = -(-tokens // (8 * columns)) * 8
    found = []
    for warpgroups, rows, along in itertools.product((4, 2, 1), (ROWS, 2 * ROWS), (1, 2)):
        tiling = Tiling(warpgroups, rows, tile, along * GROUP, 0)
        tiling = tiling._replace(stages=min(8, SHARED_BYTES // stage_bytes(tiling, scheme)))
        divides = outer % tiling.outer == 0 and inner % tiling.inner == 0
        if scheme.bits == 4:
            divides &= rows == ROWS  # decoding keeps many registers
        if divides and tiling.stages >= 3 and _fits_registers(tiling, scheme):
            found.append(tiling)
    return found


def _fits_registers(tiling: Tiling, scheme: Scheme) -> bool:
    """Guess whether the sums of a thread, and of each group of a step, need no spills."""
    sums, size = tiling.rows * tiling.tokens // 128, group_size(scheme)
    if size < GROUP:
        limit = MAX_SUMS_OF_SMALL_GROUPS[tiling.warpgroups]
        return sums * (1 + tiling.inner // size) <= limit
    if scheme.bits == 4:
        sums *= tiling.inner // GROUP
    return sums * (2 if sums_groups(scheme) else 1) <= MAX_SUMS[tiling.warpgroups]


def sums_groups(scheme: Scheme) -> bool:
    """Say whether each group is summed apart: it has a scale, or wgmma's sums are not float32.

    Sums of float8 products keep some 14 bits within wgmma (DeepSeek-AI 2024, arXiv:2412.19437,
    section 3.3.2), which must not happen over thousands of them.
    """
    return scheme.group is not None or scheme.floating


def group_size(scheme: Scheme) -> int:
    """Count the numbers along inner that are summed before anything is done with the sum."""
    return scheme.group or GROUP


def sums_at_once(tiling: Tiling, scheme: Scheme) -> int:
    """Count the groups within 128 numbers whose sums are open together: several if tokens are few.

    wgmma takes a while to end, and smaller groups have fewer of them to wait for.
    """
    groups = GROUP // group_size(scheme)
    while groups > 1 and groups * tiling.rows * tiling.tokens // 128 > OPEN_SUMS:
        groups //= 2
    return groups


def stage_bytes(tiling: Tiling, scheme: Scheme) -> int:
    """Count the bytes of shared memory that one step needs."""
    of_x = 1 if scheme.dynamic else 2
    return tiling.inner * (tiling.outer * scheme.bits // 8 + tiling.tokens * of_x)
