"""The decoder: KV pages are updated in place, and padding touches nobody."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.pages import StepInputs, storage_dtype
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton

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


@functools.cache
def compiled_step(dtype: jnp.dtype):
    """Compile a step with donated pages: the program, its weights and the shape of its pages."""
    spec = read_spec(CONFIG)
    bones = skeleton(spec, Target("cpu", dtype))
    keys = jax.random.split(jax.random.key(0), len(bones.held))
    weights = [
        0.2 * jax.random.normal(key, parameter.shape, parameter.dtype)
        for key, parameter in zip(keys, bones.held.values(), strict=True)
    ]
    shape = (NUM_PAGES, *spec.kv_page_shape(PAGE_SIZE))
    pages = (jax.ShapeDtypeStruct(shape, storage_dtype(dtype)),)

    def step(weights, tokens, pages, inputs):
        model = bones.assemble(weights)
        hidden, pages = model(tokens, pages, inputs)
        return model.unembed(hidden), pages

    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    lowered = jax.jit(step, donate_argnums=2).lower(weights, tokens, pages, inputs(5))
    return lowered.compile(), weights, pages


@pytest.fixture(params=["float32", "bfloat16"])
def program(request):
    """Hand out the program, its weights and fresh pages."""
    compiled, weights, pages = compiled_step(jnp.dtype(request.param))
    return compiled, weights, tuple(jnp.zeros(p.shape, p.dtype) for p in pages)


def test_pages_are_updated_in_place(program):
    compiled, _, pages = program
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= pages[0].nbytes
    assert memory.temp_size_in_bytes < pages[0].nbytes / 4  # no second copy of them


def test_a_step_writes_its_own_pages_and_the_null_page_only(program):
    compiled, weights, pages = program
    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    logits, (written,) = compiled(weights, tokens, pages, inputs(5))
    assert logits.shape == (TOKENS, CONFIG["vocab_size"])
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    touched = np.flatnonzero(np.asarray(written).any(axis=(1, 2, 3, 4, 5)))
    assert touched.tolist() == [0, 5, 9]  # five tokens: a page and the first of the next
    assert not np.asarray(written)[9, :, :, :, 1:].any()


def test_padding_does_not_change_a_token(program):
    compiled, weights, pages = program
    tokens = jnp.arange(TOKENS, dtype=jnp.int32)
    fresh = jax.tree.map(jnp.copy, pages)
    one, _ = compiled(weights, tokens, pages, inputs(5))
    other, _ = compiled(weights, tokens.at[5:].set(63), fresh, inputs(5))
    np.testing.assert_array_equal(one[:5], other[:5])


def test_the_step_lowers_for_a_gpu_that_is_not_here():
    spec = read_spec(CONFIG)
    bones = skeleton(spec, Target("cuda", jnp.dtype("bfloat16")))
    pages = (jax.ShapeDtypeStruct((9, *spec.kv_page_shape(PAGE_SIZE)), jnp.uint16),)
    step = jax.jit(lambda weights, *rest: bones.assemble(weights)(*rest), donate_argnums=2)
    tokens = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
    traced = step.trace(list(bones.held.values()), tokens, pages, inputs(5))
    assert "stablehlo" in traced.lower(lowering_platforms=("cuda",)).as_text()
