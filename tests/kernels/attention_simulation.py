"""Runs the Mosaic GPU kernels of paged attention in jax's simulator; prints a line of JSON a case.

    NPROC=16 python -m tests.kernels.attention_simulation ragged everything int8 float8

A process of its own, because the simulator has a thread for each warpgroup that waits inside a
callback: XLA needs more threads for that than the two that it makes on a machine of two cores.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from rtp_jax.kernels import compat
from rtp_jax.kernels.paged_attention import mosaic_gpu, reference
from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import Tiling
from tests.kernels.test_paged_attention import Case, inputs, options, scaled

HEADS: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 64, "page_size": 64}
CASES = {  # parts of two pages, tiles of 64 tokens: several of each
    "ragged": ("bfloat16", Case((200, 0, 150, 1, 130), (1, 0, 70, 1, 1), **HEADS)),
    "everything": (
        "bfloat16",
        Case((300, 90, 3), (1, 40, 3), **HEADS, window=50, soft_cap=2.0, sinks=True),
    ),
    "int8": ("int8", Case((200, 90), (1, 40), **{**HEADS, "heads": 3, "kv_heads": 1})),
    "float8": ("float8_e4m3fn", Case((200, 90), (1, 40), **HEADS, sinks=True)),
}
DECODING = Tiling(2, 2, 1, 2, 232, 24, split_pages=2)
CHUNKS = Tiling(1, 1, 2, 2, 240, 24, split_pages=0)


def drawn(kv_dtype: str, case: Case) -> tuple[Any, Any]:
    """Draw a step, whose pages hold no numbers where no token is, and the scales of its pages."""
    if kv_dtype != "bfloat16":
        (query, *rest), scales = scaled(case, kv_dtype)
        return (query.astype(jnp.bfloat16), *rest), scales
    query, pages, layer, step = inputs(case, jnp.bfloat16, kv_dtype)
    used = np.zeros((pages.shape[0], case.page_size), bool)
    for s, length in enumerate(case.lengths):
        at = np.arange(length)
        used[np.asarray(step.page_table)[s, at // case.page_size], at % case.page_size] = True
    not_a_number = jnp.asarray(0x7FC0, pages.dtype)  # bits of bfloat16
    dirty = jnp.where(used[:, None, None, None, :, None], pages, not_a_number)
    return (query, dirty, layer, step), None


def simulate(name: str) -> dict:
    """Run one case, and where it is ragged each sequence alone as well."""
    kv_dtype, case = CASES[name]
    arguments, scales = drawn(kv_dtype, case)
    given = {**options(case), "scales": scales}
    run = jax.jit(
        functools.partial(
            mosaic_gpu.paged_attention,
            **given,
            tilings=(DECODING, CHUNKS._replace(members=2 if scales is None else 1)),
            interpret=plgpu.InterpretGPUParams(detect_races=True),
        )
    )
    actual = np.asarray(run(*arguments), np.float32)
    races = compat.races_found()
    new = sum(case.new)
    expected = np.asarray(reference.paged_attention(*arguments, **given), np.float32)[:new]
    moved = 0.0
    if name == "ragged":
        query, pages, layer, step = arguments
        for s in (0, 2):
            count = jnp.zeros_like(step.query_count).at[s].set(case.new[s])
            alone = np.asarray(
                run(query, pages, layer, step._replace(query_count=count)), np.float32
            )
            own = slice(int(step.query_start[s]), int(step.query_start[s]) + case.new[s])
            moved = max(moved, float(np.abs(alone[own] - actual[own]).max()))
    return {
        "name": name,
        "error": float(np.abs(actual[:new] - expected).max()),
        "finite": bool(np.isfinite(actual).all()),
        "races": races,
        "moved_by_neighbours": moved,
    }


if __name__ == "__main__":
    for case_name in sys.argv[1:]:
        print(json.dumps(simulate(case_name)), flush=True)
