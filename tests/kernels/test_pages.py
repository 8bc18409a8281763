"""The contract of pages: what is written where, and how numbers are stored."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.pages import KVGroup, StepInputs, from_bits, storage_dtype, to_bits, write_kv

PAGE_SIZE, KV_HEADS, HEAD_DIM = 4, 2, 3
TABLE = [[2, 5, 0], [1, 0, 0], [0, 0, 0]]


def step() -> StepInputs:
    """Bring tokens 3, 4 of the first sequence, token 0 of the second, and two of padding."""
    return StepInputs(
        positions=jnp.asarray([[3, 4, 0, 0, 0]], jnp.int32),
        sequence_of=jnp.asarray([0, 0, 1, 0, 0], jnp.int32),
        num_tokens=jnp.int32(3),
        page_table=jnp.asarray(TABLE, jnp.int32),
        query_start=jnp.asarray([0, 2, 0], jnp.int32),
        query_count=jnp.asarray([2, 1, 0], jnp.int32),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bits_are_the_numbers(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), dtype)
    stored = to_bits(x, storage_dtype(jnp.dtype(dtype)))
    assert stored.dtype == (jnp.uint16 if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(np.float32(from_bits(stored)), np.float32(x))


def test_pages_may_be_narrower_than_the_model():
    x = jnp.asarray([1.0, 1.00390625 + 2**-12], jnp.float32)  # halfway and above: rounds up
    expected = np.float32(x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(np.float32(from_bits(to_bits(x, jnp.dtype("uint16")))), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_land_in_their_pages_and_padding_in_the_null_page(dtype):
    storage = storage_dtype(jnp.dtype(dtype))
    pages = jnp.zeros((6, 2, 2, KV_HEADS, PAGE_SIZE, HEAD_DIM), storage)
    key, value = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(5, KV_HEADS, HEAD_DIM)), dtype)
        for seed in (0, 1)
    )
    written = write_kv(KVGroup(pages, None), jnp.int32(1), key, value, step())
    assert written.scales is None
    numbers = np.array(from_bits(written.pages), np.float32)
    for token, (page, offset) in enumerate([(2, 3), (5, 0), (1, 0)]):
        for kind, new in enumerate((key, value)):
            np.testing.assert_array_equal(numbers[page, 1, kind, :, offset], np.float32(new[token]))
            numbers[page, 1, kind, :, offset] = 0
    assert not numbers[:, 0].any()  # the other layer
    assert not numbers[1:].any()  # the null page may hold anything


@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_what_is_no_number_is_not_stored_as_one(storage):
    pages = jnp.zeros((6, 2, 2, KV_HEADS, PAGE_SIZE, HEAD_DIM), storage)
    kv = KVGroup(pages, jnp.zeros(pages.shape[:-1], jnp.float32))
    key, value = jnp.ones((2, 5, KV_HEADS, HEAD_DIM), jnp.float32)
    key, value = key.at[0, 1, 0].set(jnp.nan), value.at[1, 0, 2].set(-jnp.inf)
    written = write_kv(kv, jnp.int32(1), key, value, step())
    numbers = np.float32(from_bits(written.pages)) * np.asarray(written.scales)[..., None]
    assert np.isnan(numbers[2, 1, 0, 1, 3]).all()
    assert np.isnan(numbers[5, 1, 1, 0, 0]).all()
    np.testing.assert_allclose(numbers[2, 1, 0, 0, 3], 1, rtol=1e-6)
    np.testing.assert_allclose(numbers[5, 1, 1, 1, 0], 1, rtol=1e-6)


def test_kv_length_counts_this_step():
    np.testing.assert_array_equal(step().kv_length(), [5, 1, 0])
