"""Paged attention: the reference against float64 NumPy, every kernel against the reference."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.errors import KernelError
from rtp_jax.kernels.paged_attention import KERNELS, paged_attention, reference, xla_cpu
from rtp_jax.kernels.paged_attention.shape import AttentionShape
from rtp_jax.kernels.pages import (
    KVGroup,
    StepInputs,
    from_bits,
    storage_dtype,
    to_bits,
    write_kv,
)

PADDING = 3
CPU_KERNELS = [name for name, kernel in KERNELS.items() if "cpu" in kernel.PLATFORMS]
FULL = np.iinfo(np.int32).max


class Case(NamedTuple):
    """A step: for each sequence the tokens in its pages, and how many of them are new."""

    lengths: tuple[int, ...]
    new: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 4
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


CASES = {
    "decode": Case((9, 1, 33, 16), (1, 1, 1, 1)),
    "first tokens of a prompt": Case((13,), (13,)),
    "chunk after chunk": Case((300, 21), (90, 5)),
    "all kinds at once": Case((40, 7, 0, 130, 5, 700), (1, 7, 0, 70, 1, 1)),
    "three heads, one kv head": Case((17, 4), (1, 4), heads=3, kv_heads=1, head_dim=24),
    "as many kv heads": Case((17, 70), (1, 70), heads=5, kv_heads=5, head_dim=80),
    "large pages": Case((600, 30), (1, 30), page_size=64, head_dim=128),
    "a page larger than a block": Case((600, 30), (1, 30), page_size=512),
    "window": Case((40, 700, 90), (1, 66, 1), window=7),
    "window of one": Case((40, 9), (1, 9), window=1),
    "soft cap": Case((40, 9), (1, 9), soft_cap=2.0),
    "sinks": Case((40, 300, 9), (1, 70, 9), sinks=True),
    "sinks behind a window": Case((40, 300, 9), (1, 70, 9), window=7, sinks=True),
}


def inputs(case: Case, dtype=jnp.float32, kv_dtype=None, seed: int = 0):
    """Draw queries, pages in a random order, and the step."""
    rng = np.random.default_rng(seed)
    sequences, num_tokens = len(case.lengths), sum(case.new)
    width = max(-(-length // case.page_size) for length in case.lengths) + 1
    num_pages = 1 + sum(-(-length // case.page_size) for length in case.lengths)
    free = list(1 + rng.permutation(num_pages - 1))
    table = np.zeros((sequences, width), np.int32)
    position, sequence_of = np.zeros((2, num_tokens + PADDING), np.int32)
    start = np.cumsum([0, *case.new[:-1]]).astype(np.int32)
    for s, (length, new) in enumerate(zip(case.lengths, case.new, strict=True)):
        for page in range(-(-length // case.page_size)):
            table[s, page] = free.pop()
        position[start[s] : start[s] + new] = np.arange(length - new, length)
        sequence_of[start[s] : start[s] + new] = s
    start[np.array(case.new) == 0] = 0
    step = StepInputs(
        positions=jnp.asarray(position[None]),
        sequence_of=jnp.asarray(sequence_of),
        num_tokens=jnp.int32(num_tokens),
        page_table=jnp.asarray(table),
        query_start=jnp.asarray(start),
        query_count=jnp.asarray(case.new, dtype=jnp.int32),
    )
    shape = (num_pages, 2, 2, case.kv_heads, case.page_size, case.head_dim)
    stored = storage_dtype(jnp.dtype(kv_dtype or dtype))
    pages = to_bits(jnp.asarray(rng.normal(size=shape), jnp.float32), stored)
    query = rng.normal(size=(num_tokens + PADDING, case.heads, case.head_dim))
    return jnp.asarray(query, dtype), pages, jnp.int32(1), step


def on_host(step: StepInputs) -> StepInputs:
    """Give loops NumPy arrays: an element of a device's array costs a program each."""
    return jax.tree.map(np.asarray, step)


def options(case: Case) -> dict:
    sinks = np.linspace(-1.0, 3.0, case.heads, dtype=np.float32)
    return {
        "scale": 0.3,
        "sliding_window": case.window,
        "soft_cap": case.soft_cap,
        "sinks": jnp.asarray(sinks) if case.sinks else None,
    }


def exact(case: Case, query, pages, layer, step, scales=None) -> np.ndarray:
    """Compute each token of each head by itself, in float64."""
    query = np.asarray(query, np.float64)
    pages = np.asarray(from_bits(pages), np.float64)[:, int(layer)]
    if scales is not None:
        pages = pages * np.asarray(scales, np.float64)[:, int(layer), ..., None]
    step, sinks = on_host(step), np.asarray(options(case)["sinks"])
    out = np.zeros_like(query)[: sum(case.new)]
    for token in range(out.shape[0]):
        position = int(step.positions[0, token])
        begin = 0 if case.window is None else max(0, position - case.window + 1)
        table = step.page_table[step.sequence_of[token]]
        seen = [
            (table[p // case.page_size], p % case.page_size) for p in range(begin, position + 1)
        ]
        for head in range(case.heads):
            kv_head = head * case.kv_heads // case.heads
            key, value = (
                np.stack([pages[page, kind, kv_head, offset] for page, offset in seen])
                for kind in (0, 1)
            )
            score = key @ query[token, head] * 0.3
            if case.soft_cap is not None:
                score = case.soft_cap * np.tanh(score / case.soft_cap)
            sink = [sinks[head]] if case.sinks else []
            weight = np.exp(np.concatenate([score, sink]) - score.max())
            out[token, head] = (weight / weight.sum())[: score.size] @ value
    return out


@functools.cache
def compiled(name: str, implementation: str):
    call = functools.partial(paged_attention, platform="cpu", implementation=implementation)
    return jax.jit(functools.partial(call, **options(CASES[name])))


@pytest.mark.parametrize("name", CASES)
def test_reference_is_right(name):
    case = CASES[name]
    arguments = inputs(case)
    actual = compiled(name, "reference")(*arguments)
    # Scores are sums of head_dim products, weights have 1 in sum: a few dozen roundings of 6e-8.
    np.testing.assert_allclose(actual[: sum(case.new)], exact(case, *arguments), rtol=0, atol=1e-5)


def assert_matches_reference(kernel, name, dtype, kv_dtype, tolerance):
    arguments = inputs(CASES[name], dtype, kv_dtype)
    expected = compiled(name, "reference")(*arguments)
    actual = compiled(name, kernel)(*arguments)
    assert actual.dtype == dtype
    assert np.isfinite(np.float32(actual)).all()  # padding included
    new = slice(sum(CASES[name].new))
    np.testing.assert_allclose(
        np.float32(actual[new]), np.float32(expected[new]), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_kernel_matches_reference(kernel, name):
    # The same float32 sums in another order.
    assert_matches_reference(kernel, name, jnp.float32, jnp.float32, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "tolerance"),
    [
        (jnp.float32, jnp.bfloat16, 1e-5),  # pages are widened, nothing is rounded
        (jnp.bfloat16, jnp.float32, 2e-2),  # only the result is rounded, to 8 bits; |value| <= 4
        (jnp.bfloat16, jnp.bfloat16, 3e-2),  # and so are the weights of the softmax
    ],
)
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_kernel_matches_reference_in_bfloat16(kernel, dtype, kv_dtype, tolerance):
    assert_matches_reference(kernel, "all kinds at once", dtype, kv_dtype, tolerance)


@pytest.mark.parametrize("implementation", ["reference", *CPU_KERNELS])
def test_a_window_may_be_an_array(implementation):
    case = CASES["window"]
    arguments = inputs(case)
    call = functools.partial(
        paged_attention, scale=0.3, platform="cpu", implementation=implementation
    )
    traced = jax.jit(lambda window, *args: call(*args, sliding_window=window))
    for window, same in ((7, case), (FULL, case._replace(window=None))):
        actual = traced(jnp.int32(window), *arguments)[: sum(case.new)]
        np.testing.assert_allclose(actual, exact(same, *arguments), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["all kinds at once", "window"])
@pytest.mark.parametrize("implementation", ["reference", *CPU_KERNELS])
def test_what_pages_held_before_does_not_matter(implementation, name):
    case = CASES[name]
    query, pages, layer, step = inputs(case)
    dirty, held, table = np.full(pages.shape, np.nan), np.asarray(pages), on_host(step).page_table
    for s, length in enumerate(case.lengths):
        for p in range(length):
            spot = (table[s, p // case.page_size], slice(None), slice(None))
            spot = (*spot, slice(None), p % case.page_size)
            dirty[spot] = held[spot]
    call = compiled(name, implementation)
    expected = call(query, pages, layer, step)[: sum(case.new)]
    actual = call(query, jnp.asarray(dirty, pages.dtype), layer, step)[: sum(case.new)]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_neighbours_do_not_change_a_bit(kernel):
    case = Case((40, 700, 130), (1, 1, 70))
    query, pages, layer, step = inputs(case, jnp.bfloat16)
    call = jax.jit(functools.partial(KERNELS[kernel].paged_attention, scale=0.3))
    together = call(query, pages, layer, step)
    for s, new in enumerate(case.new):
        alone = step._replace(
            query_count=jnp.zeros_like(step.query_count).at[s].set(new),
        )
        tokens = slice(int(step.query_start[s]), int(step.query_start[s]) + new)
        actual = call(query, pages, layer, alone)
        np.testing.assert_array_equal(np.float32(actual[tokens]), np.float32(together[tokens]))


def test_a_step_of_padding_alone_runs():
    query, pages, layer, step = inputs(CASES["decode"])
    empty = step._replace(num_tokens=jnp.int32(0), query_count=jnp.zeros_like(step.query_count))
    assert np.isfinite(compiled("decode", "xla_cpu")(query, pages, layer, empty)).all()


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(KernelError, match=r"RTPJ-6001 .*'fast'.*auto, .*xla_cpu, reference"):
        paged_attention(*inputs(CASES["decode"]), scale=1.0, platform="cpu", implementation="fast")


def test_an_obstacle_is_repeated():
    shape = AttentionShape(
        platform="cpu",
        dtype=jnp.dtype(jnp.float32),
        storage=jnp.dtype(jnp.float32),
        head_dim=16,
        page_size=4,
        heads=4,
        kv_heads=2,
        features=frozenset(),
    )
    assert xla_cpu.obstacle(shape) is None
    with pytest.raises(KernelError, match=r"RTPJ-6002 .*target is tpu"):
        paged_attention(
            *inputs(CASES["decode"]), scale=1.0, platform="tpu", implementation="xla_cpu"
        )


def test_auto_falls_back_to_the_reference():
    arguments = inputs(CASES["decode"])
    actual = paged_attention(*arguments, scale=0.3, platform="tpu")
    expected = reference.paged_attention(*arguments, scale=0.3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def scaled(case: Case, stored: str, seed: int = 0):
    """Draw queries, and pages of a byte a number with scales between 0.01 and 0.1."""
    query, pages, layer, step = inputs(case, seed=seed)
    scales = np.random.default_rng(seed + 1).uniform(0.01, 0.1, pages.shape[:-1])
    largest = {"int8": 127, "float8_e4m3fn": 448}[stored]
    numbers = jnp.clip(pages * 10, -largest, largest)
    numbers = jnp.round(numbers) if stored == "int8" else numbers
    pages = to_bits(numbers, storage_dtype(jnp.dtype(stored)))
    return (query, pages, layer, step), jnp.asarray(scales, jnp.float32)


@pytest.mark.parametrize("stored", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("implementation", ["reference", *CPU_KERNELS])
def test_pages_may_have_scales(implementation, stored):
    case = CASES["all kinds at once"]._replace(lengths=(40, 7, 0, 130, 5, 70), sinks=True)
    arguments, scales = scaled(case, stored)
    call = functools.partial(paged_attention, platform="cpu", implementation=implementation)
    actual = jax.jit(functools.partial(call, **options(case)))(*arguments, scales=scales)
    expected = exact(case, *arguments, scales)
    np.testing.assert_allclose(actual[: sum(case.new)], expected, rtol=0, atol=1e-5)


def test_scales_that_pages_held_before_do_not_matter():
    case = CASES["decode"]
    arguments, scales = scaled(case, "int8")
    _, _, _, step = arguments
    dirty, held = np.full(scales.shape, np.nan, np.float32), np.asarray(scales)
    for s, length in enumerate(case.lengths):
        for p in range(length):
            page, offset = on_host(step).page_table[s, p // case.page_size], p % case.page_size
            dirty[page, :, :, :, offset] = held[page, :, :, :, offset]
    call = jax.jit(functools.partial(xla_cpu.paged_attention, scale=0.3))
    expected = call(*arguments, scales=scales)[: sum(case.new)]
    actual = call(*arguments, scales=jnp.asarray(dirty))[: sum(case.new)]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("stored", "error"), [("int8", 1 / 254), ("float8_e4m3fn", 1 / 28)])
def test_what_is_written_with_a_scale_is_read_back(stored, error):
    case = CASES["chunk after chunk"]
    _, pages, layer, step = inputs(case)
    tokens = sum(case.new) + PADDING
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(2, tokens, case.kv_heads, case.head_dim)) * 10.0 ** rng.integers(
        -3, 3, (2, tokens, case.kv_heads, 1)
    )
    drawn[:, 3] = 0
    key, value = jnp.asarray(drawn, jnp.float32)
    stored_pages = jnp.zeros(pages.shape, storage_dtype(jnp.dtype(stored)))
    kv = KVGroup(stored_pages, jnp.zeros(pages.shape[:-1], jnp.float32))
    stored_pages, scales, _ = jax.jit(write_kv)(kv, layer, key, value, step)
    numbers = np.float32(from_bits(stored_pages)) * np.asarray(scales)[..., None]
    step = on_host(step)
    for token in range(sum(case.new)):
        position = int(step.positions[0, token])
        page = step.page_table[step.sequence_of[token], position // case.page_size]
        read = numbers[page, int(layer), :, :, position % case.page_size]
        largest = np.abs(drawn[:, token]).max(-1, keepdims=True)
        # Half a step of the largest number: 1/254 of it in int8, 1/28 (3 bits) in float8.
        assert (np.abs(read - drawn[:, token]) <= largest * error).all()
