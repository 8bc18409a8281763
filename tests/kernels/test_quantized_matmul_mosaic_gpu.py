"""The Hopper kernel of quantized matmul: plans in plain Python, the kernel simulated with races.

That it compiles to machine code without spills is asserted by `tests/gpu`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from rtp_jax.errors import KernelError
from rtp_jax.kernels import compat
from rtp_jax.kernels.quantized_matmul import mosaic_gpu, quantized_matmul, reference
from rtp_jax.kernels.quantized_matmul.mosaic_plan import (
    MAX_TOKENS,
    SHARED_BYTES,
    Plan,
    Tiling,
    default_tiling,
    group_size,
    plan,
    stage_bytes,
    sums_at_once,
)
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray, plain
from rtp_jax.quant.schemes import SCHEMES, quantize
from tools.every_scheme import EVERY_SCHEME

needs_mosaic = pytest.mark.skipif(not compat.HAS_MOSAIC_GPU, reason="needs jax 0.11")
MATRICES = [(6144, 4096), (4096, 14336), (28672, 4096), (1024, 3072), (151936, 1024), (64, 128)]


def weights(name: str, outer: int, inner: int, **changes: int) -> QuantizedArray:
    """Draw two layers in a scheme, or one that is like it."""
    scheme = EVERY_SCHEME[name]._replace(**changes)
    draw = np.random.default_rng(0)
    dense = draw.standard_normal((2, outer, inner)).astype(np.float32)
    encoded = [quantize(matrix, scheme._replace(zeros=False)) for matrix in dense]
    values, scales = (jnp.asarray(np.stack(part)) for part in zip(*encoded, strict=True))
    zeros = draw.integers(0, 16, scales.shape, np.uint8) if scheme.zeros else None
    zeros = None if zeros is None else jnp.asarray(zeros)
    return QuantizedArray(values, scales, scheme, ROWS, outer=outer, inner=inner, zeros=zeros)


def rows_of(tokens: int, inner: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (tokens, inner), jnp.bfloat16)


@functools.cache
def program(tiling: Tiling):
    """Compile a simulation of the kernel."""
    simulate = plgpu.InterpretGPUParams(detect_races=True)
    run = functools.partial(mosaic_gpu.quantized_matmul, tiling=tiling, interpret=simulate)
    return jax.jit(run)


def simulated(x, weight, layer: int, tiling: Tiling, rows: int | None = None) -> jax.Array:
    """Run the kernel on the CPU and fail if two of its threads race."""
    count = None if rows is None else jnp.int32(rows)
    product = jax.block_until_ready(program(tiling)(x, weight, jnp.int32(layer), rows=count))
    assert not compat.races_found()
    return product


def assert_close(actual, expected) -> None:
    """Both sides add the same products in float32, in another order."""
    eps = 4 * np.sqrt(512) * np.finfo(np.float32).eps
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=eps * largest)


@needs_mosaic
@pytest.mark.parametrize(
    ("name", "tiling"),
    [
        # Three blocks share two tiles of four steps, so that one tile is cut within.
        ("int8", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("int4", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("int8_dynamic", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("fp8", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("int4_zeros", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("int4_zeros-32", Tiling(1, 64, 8, 128, 2, blocks=3)),
        ("fp8_block", Tiling(1, 64, 8, 128, 2, blocks=3)),
        # Tokens enough that small groups are summed one after the other.
        ("int4_zeros-32", Tiling(1, 64, 56, 128, 2, blocks=1)),
        # Two warpgroups share the tile of x, a step has two groups, and stages are used twice.
        ("int4", Tiling(2, 64, 8, 256, 1, blocks=1)),
        ("int4-64", Tiling(2, 64, 8, 256, 1, blocks=1)),
    ],
)
def test_kernel_matches_reference(name, tiling):
    weight, x = weights(name, 128, 512), rows_of(5, 512)
    actual = simulated(x, weight, 1, tiling)
    assert_close(actual, np.asarray(reference.quantized_matmul(x, weight, 1)))


@needs_mosaic
def test_tiles_of_padding_are_skipped_and_zero():
    weight, x = weights("int8_dynamic", 64, 256), rows_of(24, 256)
    expected = np.asarray(reference.quantized_matmul(x, weight, 0))
    for rows in (0, 3, 9, 17):
        actual = simulated(x, weight, 0, Tiling(1, 64, 8, 128, 2, blocks=2), rows=rows)
        assert_close(actual[:rows], expected[:rows])
        assert not actual[-(-rows // 8) * 8 :].any()


@needs_mosaic
@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_the_kernel_is_in_the_program(name):
    leaves, tree = jax.tree.flatten(weights(name, 128, 512))

    def run(x, leaves, layer):
        return quantized_matmul(x, jax.tree.unflatten(tree, leaves), layer, platform="cuda")

    arguments = (rows_of(16, 512), leaves, jnp.int32(0))
    lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


def covered(chosen: Plan) -> np.ndarray:
    """Count how often each step of each tile is computed, as the kernel walks: [tiles, steps]."""
    tiles = chosen.outer_tiles * chosen.token_tiles
    counts = np.zeros((tiles, chosen.steps), int)
    parts = np.zeros((chosen.parts, tiles), bool)
    for block in range(chosen.blocks):
        line = np.arange(
            block * chosen.quota, min((block + 1) * chosen.quota, tiles * chosen.steps)
        )
        counts[line // chosen.steps, line % chosen.steps] += 1
        for tile in np.unique(line // chosen.steps):
            part = block - tile * chosen.steps // chosen.quota
            assert not parts[part, tile]
            parts[part, tile] = True
    np.testing.assert_array_equal(parts.reshape(chosen.used().shape), chosen.used())
    return counts


@pytest.mark.parametrize("tokens", [1, 8, 24, 64, 136, 512])
@pytest.mark.parametrize(("outer", "inner"), MATRICES)
@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_a_plan_computes_every_step_once(name, outer, inner, tokens):
    scheme = EVERY_SCHEME[name]
    tiling = default_tiling(scheme, tokens=tokens, outer=outer, inner=inner)
    padded = -(-tokens // tiling.tokens) * tiling.tokens
    chosen = plan(tiling, scheme.bits, tokens=padded, outer=outer, inner=inner)

    assert (covered(chosen) == 1).all()
    assert chosen.blocks <= tiling.blocks
    assert tiling.stages * stage_bytes(tiling, scheme) <= SHARED_BYTES
    assert tiling.stages >= 3
    columns = -(-tokens // MAX_TOKENS[group_size(scheme)])
    assert padded < tokens + 8 * columns  # hardly more padding than rows of eight


def test_small_groups_are_summed_together_where_tokens_are_few():
    for name, few, many in (("int4-32", 4, 1), ("int4-64", 2, 1), ("int4", 1, 1), ("int8", 1, 1)):
        assert sums_at_once(Tiling(4, 64, 8, 256, 3), EVERY_SCHEME[name]) == few
        assert sums_at_once(Tiling(2, 64, 64, 128, 3), EVERY_SCHEME[name]) == many


def test_large_matrices_keep_the_gpu_busy():
    for outer, inner in MATRICES[:3]:
        for tokens in (1, 16, 2048):
            tiling = default_tiling(SCHEMES["int8"], tokens=tokens, outer=outer, inner=inner)
            chosen = plan(tiling, 8, tokens=-(-tokens // 128) * 128, outer=outer, inner=inner)
            steps = chosen.steps * chosen.outer_tiles * chosen.token_tiles
            assert steps / (chosen.quota * tiling.blocks) > 0.8


@needs_mosaic
@pytest.mark.parametrize(
    ("x", "weight", "reason"),
    [
        (rows_of(8, 256), plain(jnp.zeros((1, 64, 256), jnp.bfloat16)), "multiplied by XLA"),
        (rows_of(8, 256), weights("int8", 96, 256), r"reads 64 rows of 128 .* is \[96, 256\]"),
        (rows_of(8, 192), weights("int8", 64, 192), r"reads 64 rows of 128 .* is \[64, 192\]"),
        (rows_of(8, 256).astype(jnp.float32), weights("int4", 64, 256), "x is float32"),
        (rows_of(8, 256), weights("int4", 64, 256, group=256), "groups have 32, 64, 128 .* 256"),
    ],
)
def test_what_it_cannot_serve_it_says(x, weight, reason):
    with pytest.raises(KernelError, match=f"RTPJ-6002.*{reason}"):
        quantized_matmul(x, weight, 0, platform="cuda", implementation="mosaic_gpu")
    # Then XLA serves, which both platforms have.
    assert quantized_matmul(x, weight, 0, platform="cpu").shape == (8, weight.outer)
