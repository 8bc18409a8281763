"""Programs that are broken on purpose, beside whole ones, for `test_gate.py`: a catalogue."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from rtp_jax.runner.programs import Program
from rtp_jax.runner.step import State
from tools.gpu_gate import catalogue as real
from tools.gpu_gate.report import Expectation

ROWS, COLUMNS = 128, 64  # one row for each thread: 64 numbers in its 255 registers
TOO_WIDE = 256
SIZE = 2048  # of a matrix
NAME = "square_tile"


def square_tile(x_ref, out_ref, tile, arrived):
    """Square a tile in shared memory, with all of it in registers while others may write it."""
    plgpu.copy_gmem_to_smem(x_ref, tile, arrived)
    plgpu.barrier_wait(arrived)
    kept = tile[...]
    tile[...] = kept + 1.0
    plgpu.commit_smem()  # a barrier: what is needed behind it cannot be read again
    tile[...] = kept * tile[...]
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(tile, out_ref)
    plgpu.wait_smem_to_gmem(0)


def kernel(x: jax.Array) -> jax.Array:
    """Call the kernel on one tile."""
    scratch = [plgpu.SMEM(x.shape, x.dtype), plgpu.Barrier()]
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return plgpu.kernel(square_tile, out_type=out, scratch_types=scratch)(x)


def alone(call: Callable[[jax.Array], jax.Array], columns: int) -> Program:
    """Make a program of one call on a tile."""
    tile = jax.ShapeDtypeStruct((ROWS, columns), jnp.float32)
    return Program("kernel", call, (tile,), tile)


def fallen_back(x: jax.Array) -> jax.Array:
    """Compute much the same without the kernel."""
    return x * 2.0


def small_step() -> tuple[Program, Expectation]:
    """Describe the smallest step of Qwen3-0.6B with one layer."""
    variant = real.VARIANTS["qwen3-0.6b"]
    spec, plan = real.first_layers(variant.spec, 1), real.planned(variant)
    program = real.step_program(variant, spec, plan, real.buckets()[0])
    return program, real.expectation(variant, spec, plan)


def copying_step() -> Program:
    """Let the step read the old pages after it wrote new ones, so that both must exist."""
    program = small_step()[0]

    def copying(weights, state, *rest):
        after, sampled = program.function(weights, state, *rest)
        mixed = jax.tree.map(lambda new, old: new | jnp.flip(old, 0), after.kv, state.kv)
        return State(mixed, after.history), sampled

    return dataclasses.replace(program, function=copying)


def scanned(stack: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply by one matrix of a stack after the other, which XLA copies out of it."""
    return jax.lax.scan(lambda x, matrix: (x @ matrix, None), x, stack)[0]


def turned(matrix: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Multiply by a matrix, of which the program also makes another."""
    return x @ matrix, matrix.T


def products(call: Callable[..., Any], shape: tuple[int, ...]) -> Program:
    """Make a program that multiplies by weights of a shape."""
    weights, x = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        jax.ShapeDtypeStruct((8, shape[-1]), jnp.bfloat16),
    )
    return Program("products", call, (weights, x), jax.eval_shape(call, weights, x))


def catalogue() -> dict[str, real.Case]:
    """List the mutants by name."""
    of_kernel = Expectation(kernels=(NAME,), max_temp_bytes=0)
    of_step = small_step()[1]
    of_products = Expectation(max_temp_bytes=1 << 30, has_weights=True)
    return {
        "kernel": real.Case(partial(alone, kernel, COLUMNS), of_kernel),
        "kernel that spills": real.Case(partial(alone, kernel, TOO_WIDE), of_kernel),
        "kernel that fell back": real.Case(partial(alone, fallen_back, COLUMNS), of_kernel),
        "step that copies": real.Case(copying_step, of_step),
        "layers that are copied": real.Case(
            partial(products, scanned, (4, SIZE, SIZE)), of_products
        ),
        "weights that are turned": real.Case(partial(products, turned, (SIZE, SIZE)), of_products),
    }
