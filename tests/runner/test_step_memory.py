"""No program copies the KV pages: what is donated is aliased, and temporary memory is bounded."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.pages import storage_dtype
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.runner.buckets import lattice
from rtp_jax.runner.programs import Program
from rtp_jax.runner.runner import Runner, StepShapes
from rtp_jax.runner.step import State

NUM_PAGES, PAGE_SIZE = 6000, 16


def make_runner(folder: Path, dtype: str) -> Runner:
    """Describe a runner without loading or allocating anything."""
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    bones = skeleton(spec, Target("cpu", jnp.dtype(dtype)))
    shapes = StepShapes(
        buckets=lattice(64, 16, deterministic=False),
        page_shapes=((NUM_PAGES, *spec.kv_page_shape(PAGE_SIZE)),),
        page_dtype=np.dtype(storage_dtype(jnp.dtype(dtype))),
        num_slots=16,
        max_model_len=512,
        page_size=PAGE_SIZE,
        vocab_size=spec.vocab_size,
        padded_vocab_size=spec.vocab_size,
    )
    weights = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in bones.held.values()]
    device = jax.devices("cpu")[0]
    return Runner(weights=weights, build=bones.assemble, shapes=shapes, device=device)


def compile_program(program: Program) -> jax.stages.Compiled:
    """Compile as `prepare_programs` does."""
    jitted = jax.jit(program.function, donate_argnums=program.donated, keep_unused=True)
    return jitted.lower(*program.arguments).compile()


def donated_bytes(program: Program) -> int:
    """Bytes of the arguments that a program gives away."""
    leaves = [leaf for i in program.donated for leaf in jax.tree.leaves(program.arguments[i])]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def workspace_bound(runner: Runner) -> int:
    """One page, and what the largest step may need beside: a few copies of logits, KV tiles."""
    pages = runner.shapes.page_shapes[0]
    page_bytes = int(np.prod(pages[1:])) * runner.shapes.page_dtype.itemsize
    rows, vocab = max(b.sequences for b in runner.shapes.buckets), runner.shapes.vocab_size
    tokens = max(b.tokens for b in runner.shapes.buckets)
    return page_bytes + 24 * rows * vocab * 4 + tokens * 16 * 1024 + 2**20


def assert_in_place(runner: Runner, program: Program) -> None:
    """Assert that the state is aliased whole and nothing of its size is made beside it."""
    memory = compile_program(program).memory_analysis()
    kv_bytes = int(np.prod(runner.shapes.page_shapes[0])) * runner.shapes.page_dtype.itemsize
    assert donated_bytes(program) >= kv_bytes or program.name in ("history", "state")
    assert memory.alias_size_in_bytes == donated_bytes(program)
    assert memory.temp_size_in_bytes < min(workspace_bound(runner), kv_bytes // 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_program_updates_its_state_in_place(tiny_model, dtype):
    runner = make_runner(tiny_model, dtype)
    programs = runner.programs()
    assert len(programs) <= 10
    for program in programs if dtype == "float32" else programs[:1]:
        assert_in_place(runner, program)


def test_a_step_that_copies_the_pages_is_caught(tiny_model):
    runner = make_runner(tiny_model, "float32")
    program = runner.programs()[0]

    @functools.wraps(program.function)
    def copying(weights, state, *rest):
        # Reading the pages after they were written keeps both versions alive.
        after, sampled = program.function(weights, state, *rest)
        mixed = tuple(
            new + 0 * jnp.flip(old, 0) for new, old in zip(after.pages, state.pages, strict=True)
        )
        return State(mixed, after.history), sampled

    broken = Program(program.name, copying, program.arguments, program.results, program.donated)
    with pytest.raises(AssertionError):
        assert_in_place(runner, broken)


def test_a_step_that_does_not_donate_is_caught(tiny_model):
    runner = make_runner(tiny_model, "float32")
    program = runner.programs()[0]
    broken = Program(program.name, program.function, program.arguments, program.results)
    memory = compile_program(broken).memory_analysis()
    assert memory.alias_size_in_bytes == 0 < donated_bytes(program)
