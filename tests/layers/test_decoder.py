"""The decoder: KV pages are updated in place, and padding touches nobody."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.pages import StepInputs
from rtp_jax.layers.decoder import Run, runs
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner.kv_arrays import kv_arrays

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
TOKENS, SEQUENCES, WIDTH, PAGE_SIZE, NUM_PAGES = 8, 2, 4, 4, 4096


def inputs(count: int) -> StepInputs:
    position = np.minimum(np.arange(TOKENS), count - 1)
    return StepInputs(
        positions=jnp.asarray(position[None], jnp.int32),
        sequence_of=jnp.zeros(TOKENS, jnp.int32),
        num_tokens=jnp.int32(count),
        page_table=jnp.asarray([[5, 9, 7, 3], [0, 0, 0, 0]], jnp.int32),
        query_start=jnp.zeros(SEQUENCES, jnp.int32),
        query_count=jnp.asarray([count, 0], jnp.int32),
    )


class Numbers(NamedTuple):
    """What the model computes in, and what its pages hold."""

    dtype: str
    kv_dtype: str
    kv_layers: str = ""


@functools.cache
def compiled_step(numbers: Numbers):
    """Compile a step with donated KV: the program, its weights and the shapes of its KV groups."""
    spec, dtype = read_spec(CONFIG), jnp.dtype(numbers.dtype)
    layers = kv_layers(spec.num_layers, numbers.kv_dtype, numbers.kv_layers)
    bones = skeleton(spec, Target("cpu", dtype, kv_groups=layers.group_of))
    keys = jax.random.split(jax.random.key(0), len(bones.held))
    weights = [
        0.2 * jax.random.normal(key, parameter.shape, parameter.dtype)
        for key, parameter in zip(keys, bones.held.values(), strict=True)
    ]
    kv = kv_arrays(spec, layers, num_pages=NUM_PAGES, page_size=PAGE_SIZE)

    def step(weights, tokens, kv, inputs):
        model = bones.assemble(weights)
        hidden, kv = model(tokens, kv, inputs)
        return model.unembed(hidden), kv

    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    lowered = jax.jit(step, donate_argnums=2).lower(weights, tokens, kv, inputs(5))
    return lowered.compile(), weights, kv


def fresh(kv):
    return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), kv)


SAME, QUANTIZED = Numbers("float32", "float32"), Numbers("float32", "int8")
MIXED = Numbers("bfloat16", "int8", "1:bfloat16")  # two groups in three runs


@pytest.fixture(params=[SAME, Numbers("bfloat16", "bfloat16"), QUANTIZED, MIXED], ids=str)
def program(request):
    """Hand out the program, its weights and fresh KV."""
    compiled, weights, kv = compiled_step(request.param)
    return compiled, weights, fresh(kv)


def test_kv_is_updated_in_place(program):
    compiled, _, kv = program
    memory = compiled.memory_analysis()
    sizes = [one.nbytes for one in jax.tree.leaves(kv)]
    assert memory.alias_size_in_bytes >= sum(sizes)
    assert memory.temp_size_in_bytes < min(sizes) / 4  # no second copy of any


def test_a_step_writes_its_own_pages_and_the_null_page_only(program):
    compiled, weights, kv = program
    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    logits, written = compiled(weights, tokens, kv, inputs(5))
    assert logits.shape == (TOKENS, CONFIG["vocab_size"])
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    for array in map(np.asarray, jax.tree.leaves(written)):
        touched = np.flatnonzero(array.any(axis=tuple(range(1, array.ndim))))
        assert touched.tolist() == [0, 5, 9]  # five tokens: a page and the first of the next
        assert not array[9, :, :, :, 1:].any()
        assert array[5].any(axis=tuple(range(1, array.ndim - 1))).all()  # every layer of the group


def test_padding_does_not_change_a_token(program):
    compiled, weights, kv = program
    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    copied = jax.tree.map(jnp.copy, kv)
    one, _ = compiled(weights, tokens, kv, inputs(5))
    other, _ = compiled(weights, tokens.at[5:].set(63), copied, inputs(5))
    np.testing.assert_array_equal(one[:5], other[:5])


def test_quantized_kv_moves_logits_a_little():
    tokens = jnp.arange(TOKENS, dtype=jnp.int32)

    def logits(numbers: Numbers) -> np.ndarray:
        compiled, weights, kv = compiled_step(numbers)
        return np.asarray(compiled(weights, tokens, fresh(kv), inputs(8))[0])

    plain, quantized = logits(SAME), logits(QUANTIZED)
    # A number of a head is off by 1/254 of its largest at most; three layers add up.
    error = np.abs(plain - quantized).max() / np.abs(plain).max()
    assert 0 < error < 0.02


def test_layers_of_a_group_that_are_neighbours_run_together():
    assert runs((0, 0, 0)) == [Run(0, 3, 0, 0)]
    assert runs((0, 1, 1, 0)) == [Run(0, 1, 0, 0), Run(1, 2, 1, 0), Run(3, 1, 0, 1)]


def test_the_step_lowers_for_a_gpu_that_is_not_here():
    spec = read_spec(CONFIG)
    bones = skeleton(spec, Target("cuda", jnp.dtype("bfloat16"), kv_groups=(0, 0, 1)))
    layers = kv_layers(3, "fp8", "2:bfloat16")
    kv = kv_arrays(spec, layers, num_pages=9, page_size=PAGE_SIZE)
    step = jax.jit(lambda weights, *rest: bones.assemble(weights)(*rest), donate_argnums=2)
    tokens = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
    traced = step.trace(list(bones.held.values()), tokens, kv, inputs(5))
    assert "stablehlo" in traced.lower(lowering_platforms=("cuda",)).as_text()
