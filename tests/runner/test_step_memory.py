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
from rtp_jax.parallel.devices import Devices, LoneDevice, spec_of
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner import runner as runner_module
from rtp_jax.runner.buckets import lattice
from rtp_jax.runner.kv_arrays import kv_arrays
from rtp_jax.runner.programs import Program, lowered
from rtp_jax.runner.runner import Runner, StepShapes
from rtp_jax.runner.sampler import Sampled
from rtp_jax.runner.step import State
from rtp_jax.sampling_params import MAX_LOGPROBS

NUM_PAGES, PAGE_SIZE = 6000, 16


class Numbers(NamedTuple):
    """What a model computes in, and what its pages hold."""

    dtype: str
    kv_dtype: str
    kv_layers: str = ""
    native: bool = False


def make_runner(
    folder: Path, numbers: Numbers, devices: Devices = LoneDevice(jax.devices("cpu")[0])
) -> Runner:
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
        mesh=devices.shape,
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
    return Runner(
        weights=weights,
        build=bones.assemble,
        shapes=shapes,
        devices=devices,
        weight_specs=[spec_of(axes) for axes in bones.axes.values()],
        native=target.native,
    )


def donated_bytes(program: Program) -> int:
    """Bytes of the arguments that a program gives away."""
    return num_bytes([program.arguments[i] for i in program.donated])


def num_bytes(arrays) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def workspace_bound(runner: Runner) -> int:
    """What the largest step may need: a few copies of logits, KV tiles, and one page."""
    arrays = jax.tree.leaves(runner.shapes.kv)
    page_bytes = sum(one.size // one.shape[0] * one.dtype.itemsize for one in arrays)
    rows, vocab = max(b.sequences for b in runner.shapes.buckets), runner.shapes.vocab_size
    tokens = max(b.tokens for b in runner.shapes.buckets)
    return page_bytes + 24 * rows * vocab * 4 + tokens * 16 * 1024 + 2**20


def assert_in_place(runner: Runner, program: Program) -> None:
    """Assert that the state is aliased whole, and nothing as large as its arrays made beside it."""
    memory = lowered(program, runner._devices).compile().memory_analysis()
    kv_bytes = [one.size * one.dtype.itemsize for one in jax.tree.leaves(runner.shapes.kv)]
    assert donated_bytes(program) >= sum(kv_bytes) or program.name in ("history", "state")
    assert memory.alias_size_in_bytes == donated_bytes(program)
    assert memory.temp_size_in_bytes < min(workspace_bound(runner), *kv_bytes)


def most_likely_tokens(logits, history, options, wide, *, vocab_size, native) -> Sampled:
    """Stand in for the sampler, which sees float32 logits whatever the pages hold."""
    del history, vocab_size, native
    rows = logits.shape[0]
    none = jnp.zeros((rows, MAX_LOGPROBS), jnp.int32)
    return Sampled(
        token_ids=jnp.argmax(logits, axis=1).astype(jnp.int32),
        logprobs=jnp.max(logits, axis=1),
        ranks=options.positions,
        top_ids=none,
        top_logprobs=jnp.float32(none),
        chosen_logprobs=jnp.float32(wide.logprob_ids),
        failed=jnp.isnan(logits[:, 0]),
    )


@pytest.fixture
def small_sampler(monkeypatch):
    """Spare the compiler two thirds of a step, the sampler, which one test compiles."""
    monkeypatch.setattr(runner_module, "sample", most_likely_tokens)


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.full)])
def test_programs_update_their_state_in_place(tiny_model, count):
    runner = make_runner(tiny_model, Numbers("float32", "float32"))
    programs = runner.programs()
    assert 1 < len(programs) <= 10
    for program in programs[:count]:
        assert_in_place(runner, program)


@pytest.mark.parametrize(
    "numbers",
    [
        Numbers("bfloat16", "bfloat16"),
        Numbers("bfloat16", "int8"),
        Numbers("bfloat16", "fp8"),
        Numbers("bfloat16", "int8", native=True),
        Numbers("bfloat16", "int8", "0:bfloat16", native=True),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_sampler")
def test_pages_of_any_kind_are_updated_in_place(tiny_model, numbers):
    runner = make_runner(tiny_model, numbers)
    assert_in_place(runner, runner.programs()[0])


@pytest.mark.parametrize("copied", [0, 1])
@pytest.mark.usefixtures("small_sampler")
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


@pytest.mark.usefixtures("small_sampler")
def test_a_step_that_does_not_donate_is_caught(tiny_model):
    runner = make_runner(tiny_model, Numbers("float32", "float32"))
    program = runner.programs()[0]
    broken = Program(program.name, program.function, program.arguments, program.results)
    memory = lowered(broken, runner._devices).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 0 < donated_bytes(program)
