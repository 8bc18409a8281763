"""No program copies the KV pages: what is donated is aliased, and temporary memory is bounded."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.kernels.pages import KVGroup
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner.buckets import lattice
from rtp_jax.runner.kv_arrays import kv_arrays
from rtp_jax.runner.programs import Program
from rtp_jax.runner.runner import Runner, StepShapes
from rtp_jax.runner.step import State

NUM_PAGES, PAGE_SIZE = 6000, 16


class Numbers(NamedTuple):
    """What a model computes in, and what its pages hold."""

    dtype: str
    kv_dtype: str
    kv_layers: str = ""
    native: bool = False


def make_runner(folder: Path, numbers: Numbers) -> Runner:
    """Describe a runner without loading or allocating anything."""
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    kv = kv_layers(spec.num_layers, numbers.kv_dtype, numbers.kv_layers)
    if numbers.native and (reason := library.load(native_cache())):
        pytest.skip(reason)
    kernels = library.loaded() if numbers.native else None
    target = Target(
        "cpu",
        jnp.dtype(numbers.dtype),
        attention="native_cpu" if kernels else "xla_cpu",
        native=kernels.level if kernels else None,
        kv_groups=kv.group_of,
    )
    bones = skeleton(spec, target)
    shapes = StepShapes(
        buckets=lattice(64, 16, deterministic=False),
        kv=kv_arrays(spec, kv, num_pages=NUM_PAGES, page_size=PAGE_SIZE),
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
    """What the largest step may need: a few copies of logits, KV tiles, and one page."""
    arrays = jax.tree.leaves(runner.shapes.kv)
    page_bytes = sum(one.size // one.shape[0] * one.dtype.itemsize for one in arrays)
    rows, vocab = max(b.sequences for b in runner.shapes.buckets), runner.shapes.vocab_size
    tokens = max(b.tokens for b in runner.shapes.buckets)
    return page_bytes + 24 * rows * vocab * 4 + tokens * 16 * 1024 + 2**20


def assert_in_place(runner: Runner, program: Program) -> None:
    """Assert that the state is aliased whole, and nothing as large as its arrays made beside it."""
    memory = compile_program(program).memory_analysis()
    kv_bytes = [one.size * one.dtype.itemsize for one in jax.tree.leaves(runner.shapes.kv)]
    assert donated_bytes(program) >= sum(kv_bytes) or program.name in ("history", "state")
    assert memory.alias_size_in_bytes == donated_bytes(program)
    assert memory.temp_size_in_bytes < min(workspace_bound(runner), *kv_bytes)


@pytest.mark.parametrize(
    "numbers",
    [
        Numbers("float32", "float32"),
        Numbers("bfloat16", "bfloat16"),
        Numbers("bfloat16", "int8"),
        Numbers("bfloat16", "fp8"),
        Numbers("bfloat16", "int8", native=True),
        Numbers("bfloat16", "int8", "0:bfloat16", native=True),
    ],
    ids=str,
)
def test_every_program_updates_its_state_in_place(tiny_model, numbers):
    runner = make_runner(tiny_model, numbers)
    programs = runner.programs()
    assert len(programs) <= 10
    for program in programs if numbers.kv_dtype == "float32" else programs[:1]:
        assert_in_place(runner, program)


@pytest.mark.parametrize("copied", [0, 1])
def test_a_step_that_copies_pages_or_scales_is_caught(tiny_model, copied):
    runner = make_runner(tiny_model, Numbers("float32", "int8"))
    program = runner.programs()[0]

    @functools.wraps(program.function)
    def copying(weights, state, *rest):
        # Reading an array after it was written keeps both versions alive.
        after, sampled = program.function(weights, state, *rest)
        (new,), (old,) = after.kv, state.kv
        mixed = list(new)
        mixed[copied] = jnp.maximum(new[copied], jnp.flip(old[copied], 0))
        return State((KVGroup(*mixed),), after.history), sampled

    broken = Program(program.name, copying, program.arguments, program.results, program.donated)
    with pytest.raises(AssertionError):
        assert_in_place(runner, broken)


def test_a_step_that_does_not_donate_is_caught(tiny_model):
    runner = make_runner(tiny_model, Numbers("float32", "float32"))
    program = runner.programs()[0]
    broken = Program(program.name, program.function, program.arguments, program.results)
    memory = compile_program(broken).memory_analysis()
    assert memory.alias_size_in_bytes == 0 < donated_bytes(program)
