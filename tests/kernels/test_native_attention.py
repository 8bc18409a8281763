"""Native attention and what surrounds it, at every level this machine runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.native import attention
from rtp_jax.kernels.native.library import Library
from rtp_jax.kernels.paged_attention import native_cpu, reference
from rtp_jax.kernels.paged_attention.shape import AttentionShape
from rtp_jax.kernels.pages import KVGroup, StepInputs, from_bits, write_kv
from rtp_jax.layers.rope import Rotation, rotate
from tests.kernels.test_paged_attention import CASES, Case, inputs, options, scaled

SCALE = 0.3
SHAPES = {
    "chunks behind pages": Case((300, 90, 17), (70, 1, 17), 8, 1, 64, 16),
    "every key head its own, head_dim 80": Case((40, 130), (1, 66), 3, 3, 80, 8),
    "groups of three, head_dim 96": Case((70, 33), (65, 1), 6, 2, 96, 8),
    "large pages, head_dim 128, window": Case((700, 30), (1, 30), 8, 2, 128, 64, window=100),
    "pages that blocks do not divide": Case((200, 90), (100, 1), 4, 2, 24, 12, soft_cap=3.0),
    "more heads than a tile has rows": Case((9, 40), (9, 1), 160, 1, 16, 4, sinks=True),
    "segments": Case((2500, 1100), (1, 40), 4, 2, 32, 16),
}
MIXED = Case((40, 2100, 1130, 5), (1, 1, 70, 5), 4, 2, 32, 16)


@functools.cache
def expected(name: str, dtype: str) -> np.ndarray:
    """What the reference gives for a shape, from numbers of `dtype`."""
    case = SHAPES[name]
    call = functools.partial(reference.paged_attention, **options(case))
    return np.float32(jax.jit(call)(*inputs(case, jnp.dtype(dtype))))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", SHAPES)
def test_attention_matches_the_reference(level: Library, name, dtype, tolerance):
    case = SHAPES[name]
    call = functools.partial(attention.attention, level, **options(case))
    actual = np.float32(jax.jit(call)(*inputs(case, jnp.dtype(dtype))))
    new = sum(case.new)
    # float32: the same sums in another order; bfloat16: weights and results have 8 bits, |v| <= 4.
    np.testing.assert_allclose(actual[:new], expected(name, dtype)[:new], rtol=0, atol=tolerance)
    assert (actual[new:] == 0).all()


@functools.cache
def expected_scaled(case: Case, stored: str, dtype: str) -> np.ndarray:
    """What the reference gives from pages with scales."""
    (query, *rest), scales = scaled(case, stored)
    call = functools.partial(reference.paged_attention, **options(case))
    return np.float32(jax.jit(call)(query.astype(dtype), *rest, scales=scales))


@pytest.mark.parametrize("stored", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_pages_may_have_scales(level: Library, stored, dtype, tolerance):
    case = Case((40, 7, 0, 130), (1, 7, 0, 70), head_dim=40, sinks=True)
    (query, *rest), scales = scaled(case, stored)
    query = query.astype(dtype)
    call = functools.partial(attention.attention, level, **options(case))
    actual = jax.jit(call)(query, *rest, scales=scales)
    new = sum(case.new)
    right = expected_scaled(case, stored, dtype)[:new]
    np.testing.assert_allclose(np.float32(actual[:new]), right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_token_alone_is_the_token_of_a_chunk_to_the_bit(level: Library, dtype):
    query, pages, layer, step = inputs(MIXED, dtype)
    call = jax.jit(functools.partial(attention.attention, level, scale=SCALE))
    together = np.float32(call(query, pages, layer, step))
    for sequence, new in enumerate(MIXED.new):
        for token in {0, new // 2, new - 1}:
            first = int(step.query_start[sequence]) + token
            alone = step._replace(
                query_start=step.query_start.at[sequence].set(first),
                query_count=jnp.zeros_like(step.query_count).at[sequence].set(1),
            )
            actual = np.float32(call(query, pages, layer, alone))
            np.testing.assert_array_equal(actual[first], together[first])


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_no_token_sees_may_be_anything(level: Library, dtype, window):
    case = Case((200, 70), (1, 33), window=window)
    query, pages, layer, step = inputs(case, dtype)
    dirty = np.full(pages.shape, np.nan, np.float32)
    dirty = np.array(dirty if dtype == jnp.float32 else np.full(pages.shape, 0x7FC0, np.uint16))
    table, held = np.asarray(step.page_table), np.asarray(pages)
    for s, (length, new) in enumerate(zip(case.lengths, case.new, strict=True)):
        for p in range(max(0, length - new + 1 - (window or length)), length):
            page, offset = table[s, p // case.page_size], p % case.page_size
            dirty[page, :, :, :, offset] = held[page, :, :, :, offset]
    call = jax.jit(functools.partial(attention.attention, level, **options(case)))
    clean = np.float32(call(query, pages, layer, step))
    np.testing.assert_array_equal(np.float32(call(query, jnp.asarray(dirty), layer, step)), clean)


def normed(x, scale):
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def projections(case: Case, tokens: int, dtype):
    """Draw projections, angles, and the factors of two layers' head norms."""
    rng = np.random.default_rng(1)
    dim, heads = case.head_dim, (case.heads, case.kv_heads, case.kv_heads)
    projected = tuple(jnp.asarray(rng.normal(size=(tokens, h * dim)), dtype) for h in heads)
    angles = rng.normal(size=(tokens, dim // 2))
    turn = Rotation(jnp.float32(np.cos(angles)), jnp.float32(np.sin(angles)))
    return projected, turn, [jnp.asarray(rng.normal(size=(2, dim)), dtype) for _ in range(2)]


def group_of(pages, kv_dtype) -> KVGroup:
    """Give pages of one byte a number scales that were written before."""
    scaled = jnp.dtype(kv_dtype).itemsize == 1
    return KVGroup(pages, jnp.full(pages.shape[:-1], 0.5, jnp.float32) if scaled else None)


@functools.cache
def rotated_and_written(dtype: str, kv_dtype: str, norms: bool) -> tuple[jax.Array, KVGroup]:
    """What the layers make of the step "all kinds at once": queries, and pages with its keys."""
    case = CASES["all kinds at once"]
    query, pages, layer, step = inputs(case, dtype, kv_dtype)
    projected, turn, scales = projections(case, query.shape[0], dtype)

    def layers(kv):
        query, key, value = (x.reshape(x.shape[0], -1, case.head_dim) for x in projected)
        if norms:
            query, key = normed(query, scales[0][1 - layer]), normed(key, scales[1][1 - layer])
        query, key = rotate(query, turn), rotate(key, turn)
        return query, write_kv(kv, layer, key, value, step)

    return jax.jit(layers)(group_of(pages, kv_dtype))


def numbers_of(kv: KVGroup) -> np.ndarray:
    numbers = np.float32(from_bits(kv.pages))
    return numbers if kv.scales is None else numbers * np.asarray(kv.scales)[..., None]


# How far a number may be from another's, as a share of itself and of the largest of its head: two
# float32 expressions round differently, which may move a stored number by one step.
STEPS = {
    "float32": (4e-7, 0.0),
    "bfloat16": (2**-7, 0.0),
    "int8": (1e-6, 1 / 127),
    "float8_e4m3fn": (2**-3, 2**-9 / 448),
}


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "bfloat16"),
        ("bfloat16", "int8"),
        ("bfloat16", "float8_e4m3fn"),
        ("float32", "int8"),
        ("float32", "float8_e4m3fn"),
    ],
)
def test_rope_and_pages_match_the_layers(level: Library, dtype, kv_dtype, norms):
    case = CASES["all kinds at once"]
    query, pages, layer, step = inputs(case, dtype, kv_dtype)
    before = group_of(pages, kv_dtype)
    projected, turn, scales = projections(case, query.shape[0], dtype)
    other = 1 - layer  # layers are counted within a KV group, and factors within the model

    def native(kv):
        heads = attention.HeadNorms(*scales, layer=other, eps=1e-6) if norms else None
        return attention.rope_kv(
            level, projected, kv, layer, step, cos=turn.cos, sin=turn.sin, norms=heads
        )

    expected_query, expected = rotated_and_written(dtype, kv_dtype, norms)
    actual_query, actual = jax.jit(native)(before)
    new = sum(case.new)
    relative, _ = STEPS[dtype]
    np.testing.assert_allclose(
        np.float32(actual_query[:new]), np.float32(expected_query[:new]), rtol=relative, atol=2e-6
    )
    assert (np.float32(actual_query[new:]) == 0).all()
    for was, now in zip(jax.tree.leaves(before), jax.tree.leaves(actual), strict=True):
        changed = np.asarray(was) != np.asarray(now)
        assert changed[1:, int(layer)].any()
        assert not changed[:, 1 - int(layer)].any()
    numbers, right = numbers_of(actual)[1:], numbers_of(expected)[1:]
    relative, of_largest = STEPS[kv_dtype]
    allowed = relative * np.abs(right) + of_largest * np.abs(right).max(-1, keepdims=True) + 2e-6
    # The last bit of bfloat16 keys may differ too, before they are divided.
    allowed += (2**-7 if dtype == "bfloat16" else 0) * np.abs(right)
    assert (np.abs(numbers - right) <= allowed).all()
    if actual.scales is not None:  # a step away is rare
        assert (np.asarray(actual.pages) != np.asarray(expected.pages))[1:].mean() < 0.005


@pytest.mark.parametrize("stored", ["int8", "float8_e4m3fn"])
def test_heads_are_stored_as_the_layers_store_them(level: Library, stored):
    case = Case((200,), (200,), heads=2, kv_heads=2, head_dim=96, page_size=8)
    _, pages, layer, step = inputs(case, "float32", stored)
    rng = np.random.default_rng(4)
    shape = step.positions.shape[1], case.kv_heads, case.head_dim
    key, value = rng.normal(size=(2, *shape)) * 10.0 ** rng.integers(-9, 9, (2, *shape[:2], 1))
    value[1], key[2, 0, 3], value[3, 1, 5] = 0, np.nan, np.inf
    value[4, 0] = np.linspace(-448, 448, case.head_dim)  # scale 1 in float8
    value[5, 0] = np.arange(case.head_dim) * 2.0**-11  # halves of the smallest steps
    value[5, 0, -1] = 448
    key, value = jnp.float32(key), jnp.float32(value)
    flat = tuple(x.reshape(shape[0], -1) for x in (key, key, value))
    still = jnp.ones((shape[0], case.head_dim // 2)), jnp.zeros((shape[0], case.head_dim // 2))

    def native(kv):
        cos, sin = still
        return attention.rope_kv(level, flat, kv, layer, step, cos=cos, sin=sin)[1]

    before = group_of(pages, stored)
    actual, expected = jax.jit(native)(before), jax.jit(write_kv)(before, layer, key, value, step)
    np.testing.assert_allclose(actual.scales[1:], expected.scales[1:], rtol=3e-7)
    assert np.isnan(actual.scales[1:]).sum() == 2
    numbers, right = (np.float32(from_bits(kv.pages))[1:] for kv in (actual, expected))
    off = numbers != right
    assert off.mean() < 1e-3  # halves, and only where scales differ in their last bit
    far = 1 if stored == "int8" else 2**-3 * np.abs(right[off]) + 2**-9
    assert (np.abs(numbers - right)[off] <= far).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [64, 100])
def test_rms_norm_matches_the_layer(level: Library, width, dtype):
    rng = np.random.default_rng(2)
    x, scale = (jnp.asarray(rng.normal(size=size), dtype) for size in ((37, width), (3, width)))
    call = jax.jit(functools.partial(attention.rms_norm, level, eps=1e-6))
    actual = np.float32(call(x, scale, jnp.int32(2), jnp.int32(30)))
    right = np.float32(normed(x, scale[2]))
    np.testing.assert_allclose(
        actual[:30], right[:30], rtol=1e-6 if dtype == jnp.float32 else 2**-7, atol=1e-6
    )
    assert (actual[30:] == 0).all()
    np.testing.assert_array_equal(
        np.float32(call(x, scale[2], jnp.int32(2), jnp.int32(30))), actual
    )


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_a_step_does_not_copy_the_pages(level: Library, kv_dtype):
    case = Case((300, 90), (70, 1), 4, 2, 32, 16)
    query, pages, _, step = inputs(case, jnp.bfloat16, kv_dtype)
    projected, turn, _ = projections(case, query.shape[0], jnp.bfloat16)
    before = group_of(pages, kv_dtype)

    def layers(kv, step: StepInputs):
        def one(layer, carry):
            mixed, kv = carry
            query, kv = attention.rope_kv(
                level, projected, kv, layer, step, cos=turn.cos, sin=turn.sin
            )
            added = attention.attention(
                level, query, kv.pages, layer, step, scale=SCALE, scales=kv.scales
            )
            return mixed + added, kv

        return jax.lax.fori_loop(0, pages.shape[1], one, (jnp.zeros_like(query), kv))

    compiled = jax.jit(layers, donate_argnums=0).lower(before, step).compile()
    lines = compiled.as_text().splitlines()
    arrays = jax.tree.leaves(before)
    for array in arrays:
        name = {"uint16": "u16", "int8": "s8", "float32": "f32"}[array.dtype.name]
        shape = f"{name}[" + ",".join(map(str, array.shape)) + "]"
        assert any(shape in line and "rtp_rope_kv" in line for line in lines)
        copies = [
            line for line in lines if shape in line and (" copy(" in line or "copy-start" in line)
        ]
        assert not copies
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= sum(array.nbytes for array in arrays)
    assert memory.temp_size_in_bytes < pages.nbytes // (2 if kv_dtype == "bfloat16" else 1)


def shape_of(**changes) -> AttentionShape:
    fine = AttentionShape(
        platform="cpu",
        dtype=jnp.dtype(jnp.bfloat16),
        storage=jnp.dtype(jnp.uint16),
        head_dim=128,
        page_size=16,
        heads=16,
        kv_heads=8,
        features=frozenset(),
    )
    return fine._replace(**changes)


def test_obstacles_are_said_in_words(native_kernels):
    assert "target is cuda" in str(native_cpu.obstacle(shape_of(platform="cuda")))
    assert "float16" in str(native_cpu.obstacle(shape_of(dtype=jnp.dtype(jnp.float16))))
    assert "int32" in str(native_cpu.obstacle(shape_of(storage=jnp.dtype(jnp.int32))))
    assert "at most 256, not 320" in str(native_cpu.obstacle(shape_of(head_dim=320)))
    assert native_cpu.obstacle(shape_of()) == native_kernels
