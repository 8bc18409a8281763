"""The Hopper kernels of paged attention: tiles in plain Python, the kernels simulated with races.

That they compile to machine code without spills is asserted by `tests/gpu`.
"""

import concurrent.futures
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels import compat
from rtp_jax.kernels.paged_attention import mosaic_gpu
from rtp_jax.kernels.paged_attention.mosaic_gpu_tiles import (
    HEADER,
    RECORD,
    WIDE,
    Problem,
    chunk_tiles,
    decode_tiles,
    is_decoding,
    work,
)
from rtp_jax.kernels.paged_attention.shape import SCALES, AttentionShape
from tests.kernels.test_paged_attention import Case, inputs

needs_mosaic = pytest.mark.skipif(not compat.HAS_MOSAIC_GPU, reason="needs jax 0.11")
TOLERANCE = {  # results are about 1; they and the weights of the softmax are rounded to 8 bits
    "ragged": 3e-2,
    "everything": 3e-2,
    "int8": 3e-2,
    "float8": 3e-2,
}
SHAPE = AttentionShape(
    platform="cuda",
    dtype=jnp.dtype(jnp.bfloat16),
    storage=jnp.dtype(jnp.uint16),
    head_dim=128,
    page_size=64,
    heads=32,
    kv_heads=8,
    features=frozenset(),
)
MIXED = Case((700, 0, 150, 1, 130, 64), (1, 0, 70, 1, 130, 1), page_size=64)


@pytest.fixture(scope="module")
def simulated() -> dict[str, dict]:
    """What came of each case in the simulator, by name."""
    halves = list(TOLERANCE)[:1], list(TOLERANCE)[1:]  # which take about as long, side by side
    with concurrent.futures.ThreadPoolExecutor(len(halves)) as pool:
        return {one["name"]: one for half in pool.map(simulate, halves) for one in half}


def simulate(names: list[str]) -> list[dict]:
    """Run some cases in a process of their own."""
    command = [sys.executable, "-m", "tests.kernels.attention_simulation", *names]
    environment = {**os.environ, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@needs_mosaic
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_simulated_step_matches_the_reference(simulated, name):
    assert simulated[name]["error"] <= TOLERANCE[name]
    assert simulated[name]["finite"]  # padding included


@needs_mosaic
@pytest.mark.parametrize("name", TOLERANCE)
def test_no_two_threads_race(simulated, name):
    assert not simulated[name]["races"]


@needs_mosaic
def test_neighbours_do_not_change_a_bit(simulated):
    assert simulated["ragged"]["moved_by_neighbours"] == 0


@pytest.mark.parametrize("window", [None, 1, 64, 100])
def test_parts_of_decoding_sequences_cover_what_they_see(window):
    _, _, _, step = inputs(MIXED)
    tiles, num, places = decode_tiles(step, 64, window or WIDE, split_pages=4, rows=8)
    expected = {0: 699, 3: 0, 5: 63}  # sequence to its last position
    covered = {s: [] for s in expected}
    for t in range(int(num)):
        s = int(tiles.sequence[t])
        assert tiles.begin[t] < tiles.end[t]
        assert tiles.begin[t] // 4 == (tiles.end[t] - 1) // 4  # in one split
        assert tiles.first[t] == expected[s]
        assert tiles.tokens[t] == 1
        assert (tiles.query_row[t], tiles.out_row[t]) == (s * 8, t * 8)
        assert bool(tiles.opens[t]) == (t == places.first[s])
        covered[s] += range(int(tiles.begin[t]), int(tiles.end[t]))
    for s, last in expected.items():
        first = 0 if window is None else max(0, last - window + 1)
        assert covered[s] == list(range(first // 64, last // 64 + 1))
    assert places.parts.sum() == num


@pytest.mark.parametrize("window", [None, 1, 100])
def test_tiles_of_chunks_cover_every_token_once(window):
    _, _, _, step = inputs(MIXED)
    tiles, num = chunk_tiles(step, 64, window or WIDE, tokens=32, group=4)
    assert num <= tiles.first.size
    seen = []
    for t in range(int(num)):
        s, tokens = int(tiles.sequence[t]), int(tiles.tokens[t])
        assert 1 <= tokens <= 32
        token = int(tiles.query_row[t]) // 4
        assert tiles.query_row[t] == tiles.out_row[t] == token * 4
        assert tiles.first[t] == step.positions[0, token]
        assert (np.asarray(step.sequence_of[token : token + tokens]) == s).all()
        first, last = int(tiles.first[t]), int(tiles.first[t]) + tokens - 1
        assert tiles.begin[t] == (0 if window is None else max(0, first - window + 1) // 64)
        assert tiles.end[t] == last // 64 + 1
        seen += range(token, token + tokens)
    alone = np.asarray(is_decoding(step))
    assert sorted(seen) == [t for t in range(sum(MIXED.new)) if not alone[t]]


def test_a_list_is_laid_out_record_by_record():
    _, _, _, step = inputs(MIXED)
    tiles, num = chunk_tiles(step, 64, 9, tokens=32, group=4)
    words = np.asarray(work(tiles, num, jnp.int32(3), 9))
    assert words[:HEADER].tolist() == [num, 3, 9, 0]
    second = words[HEADER + RECORD : HEADER + 2 * RECORD]
    assert second.tolist() == [int(field[1]) for field in tiles]


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize("head_dim", mosaic_gpu.HEAD_DIMS)
@pytest.mark.parametrize(
    ("sequences", "kv_heads", "width"), [(1, 8, 512), (256, 8, 512), (8, 1, 4)]
)
def test_programs_have_what_an_sm_has(storage, head_dim, sequences, kv_heads, width):
    problem = Problem(
        kv_heads=kv_heads,
        group=4,
        head_dim=head_dim,
        page_size=64,
        layers=2,
        width=width,
        storage=jnp.dtype(storage),
        scale=1.0,
        soft_cap=None,
        windowed=True,
        has_sinks=True,
        scaled=storage == "int8",
        parts=True,
    )
    decoding, chunks = mosaic_gpu.default_tilings(problem, sequences)
    for tiling in (decoding, chunks):
        assert tiling.stages >= 2  # or nothing is fetched while a page is multiplied
        registers = tiling.all_members * tiling.registers + tiling.teams * tiling.fetch_registers
        assert registers * 128 <= 65536
    page_bytes = 2 * 64 * head_dim * problem.storage.itemsize
    assert decoding.teams * (decoding.stages - 1) * page_bytes >= 24 * 1024
    parts = sequences * -(-width // decoding.split_pages)
    assert parts * kv_heads * problem.rows * head_dim * 4 <= 64 << 20  # bytes of partial results


@needs_mosaic
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"platform": "cpu"}, "target is cpu"),
        ({"dtype": jnp.dtype(jnp.float32)}, "queries are float32"),
        ({"storage": jnp.dtype(jnp.float32)}, "these hold float32"),
        ({"head_dim": 80}, "these have 80"),
        ({"page_size": 16}, "these have 16"),
        ({"heads": 65, "kv_heads": 1}, "here 65 do"),
        ({"features": frozenset({SCALES})}, "a byte a number and these hold uint16"),
    ],
)
def test_what_cannot_be_served_is_said_in_words(changed, reason):
    assert mosaic_gpu.obstacle(SHAPE) is None
    assert reason in str(mosaic_gpu.obstacle(SHAPE._replace(**changed)))


@pytest.mark.skipif(compat.HAS_MOSAIC_GPU, reason="this jax has what the kernel needs")
def test_an_old_jax_is_an_obstacle():
    assert jax.__version__ in str(mosaic_gpu.obstacle(SHAPE))
