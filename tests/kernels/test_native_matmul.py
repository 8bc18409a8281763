"""Products with packed weights, at every level that this machine runs, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.linear import linear as any_linear
from rtp_jax.kernels.native import library, packing
from rtp_jax.kernels.native.levels import NAMES, levels_of_this_cpu
from rtp_jax.kernels.native.linear import embed, linear
from rtp_jax.kernels.quantized_matmul import native_cpu, reference
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray, plain
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, PLAIN, SCHEMES, dequantize, quantize

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
CASES = {  # scheme and dtype of x, which is that of plain weights
    "float32": (PLAIN, FLOAT32),
    "bfloat16": (PLAIN, BFLOAT16),
    "int8": (SCHEMES["int8"], BFLOAT16),
    "int8_float32": (SCHEMES["int8"], FLOAT32),
    "int8_dynamic": (SCHEMES["int8_dynamic"], BFLOAT16),
    "int4": (SCHEMES["int4"], BFLOAT16),
    "int4_zeros": (FROM_CHECKPOINTS["int4_zeros"], BFLOAT16),
}
# tokens, rows that matter, inner, outer: tiles that are not full, several passes of x
SHAPES = [(1, 1, 256, 48), (5, 3, 384, 40), (33, 30, 128, 17), (70, 70, 640, 96)]
LONG = (530, 520, 2176, 33)


def load(level: str) -> bool:
    reason = library.load(native_cache(), level=level)
    if reason is not None and "compiler" in reason:
        pytest.skip(reason)
    assert reason is None
    return True


@pytest.fixture(params=NAMES)
def level(request):
    if request.param not in [one.name for one in levels_of_this_cpu()]:
        pytest.skip(f"this processor does not run {request.param}")
    assert load(request.param)
    return request.param


def numbers(shape, dtype, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def pack(rows: np.ndarray, scheme) -> QuantizedArray:
    """Pack a stack [layers, outer, inner]."""
    layers, outer, inner = rows.shape
    size = packing.block_bytes(scheme, inner, rows.dtype)
    blocks = np.full((layers, -(-outer // packing.BLOCK_ROWS), size), 255, np.uint8)
    for layer in range(layers):
        if scheme.zeros:
            values, scales, zeros = with_zeros(rows[layer], scheme)
            packing.pack_values(values, scales, zeros, scheme, blocks[layer])
        else:
            packing.pack_rows(rows[layer], scheme, blocks[layer])
    return QuantizedArray(jnp.asarray(blocks), None, scheme, NATIVE, outer, inner)


def with_zeros(rows: np.ndarray, scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode rows, and draw zero points, which shifts the numbers of each group."""
    values, scales = quantize(rows, scheme._replace(zeros=False))
    zeros = np.random.default_rng(rows.size).integers(0, 16, scales.shape)
    return values, scales, zeros.astype(np.uint8)


def decoded(rows: np.ndarray, scheme) -> np.ndarray:
    """The numbers that a matrix [outer, inner] has become, by the definition."""
    if not scheme.is_quantized:
        return rows.astype(np.float32)
    if scheme.zeros:
        values, scales, zeros = with_zeros(rows, scheme)
        return dequantize(values, scales, scheme, zeros)
    return dequantize(*quantize(rows, scheme), scheme)


def rounded_x(x: np.ndarray, scheme) -> np.ndarray:
    """What is multiplied: x, or x after it was rounded to int8 by token, or token and group."""
    x = x.astype(np.float32)
    if scheme.name not in ("int8_dynamic", "int4", "int4_zeros"):
        return x.astype(np.float64)
    groups = x.reshape(len(x), -1, scheme.group or x.shape[1])
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    values = np.rint(groups * (np.float32(1) / scale))
    return (values.astype(np.float64) * scale).reshape(x.shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(level, case, shape):
    check_product(level, case, shape)


@pytest.mark.parametrize("case", ["bfloat16", "int8", "int8_dynamic", "int4", "int4_zeros"])
def test_products_of_many_rows_in_several_passes(case):
    check_product(first_level(), case, LONG)


def first_level() -> str:
    name = levels_of_this_cpu()[0].name
    assert load(name)
    return name


def check_product(level: str, case: str, shape):
    (scheme, dtype), (tokens, rows, inner, outer) = CASES[case], shape
    weights, x = numbers((2, outer, inner), dtype, 0), numbers((tokens, inner), dtype, 1)
    (out,) = linear(
        jnp.asarray(x), [pack(weights, scheme)], 1, rows=rows, dtype=FLOAT32, level=level
    )
    number = decoded(weights[1], scheme).astype(np.float64)
    wanted = rounded_x(x[:rows], scheme) @ number.T
    # Terms are exact but for float32; sums of n terms err by at most n units in the last place.
    bound = np.abs(rounded_x(x[:rows], scheme)) @ np.abs(number).T
    assert (np.abs(np.asarray(out)[:rows] - wanted) <= bound * inner * 2.0**-24).all()
    assert not np.asarray(out)[rows:].any()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("outer", "inner"), [(16, 128), (37, 256), (3, 1152)])
def test_packing_agrees_with_the_definition_to_the_bit(level, scheme, dtype, outer, inner):
    rows = numbers((1, outer, inner), dtype, 2)
    rows[0, 0, :128] = 0  # a group, and in one case most of a row
    rows[0, 1, 5:7] = [4, -4]  # equal magnitudes: the first decides
    packed = pack(rows, SCHEMES[scheme])
    assert level in NAMES
    np.testing.assert_array_equal(
        packing.unpack(packed, 0, dtype), decoded(rows[0], SCHEMES[scheme])
    )


@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic", "int4"])
@pytest.mark.parametrize(("outer", "inner"), [(16, 128), (37, 384)])
def test_values_are_packed_as_their_numbers_are(scheme, outer, inner):
    first_level()
    rows = numbers((1, outer, inner), FLOAT32, 2)
    expected = np.asarray(pack(rows, SCHEMES[scheme]).values[0])
    packed = np.full_like(expected, 255)
    packing.pack_values(*quantize(rows[0], SCHEMES[scheme]), None, SCHEMES[scheme], packed)
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("outer", "inner"), [(16, 32), (21, 75), (5, 67)])
def test_plain_rows_are_packed_as_they_are(dtype, outer, inner):
    assert load("portable")
    rows = numbers((2, outer, inner), dtype, 3)
    packed = pack(rows, PLAIN)
    np.testing.assert_array_equal(packing.unpack(packed, 1, dtype), rows[1].astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_those_beside_it(level, case):
    scheme, dtype = CASES[case]
    weight = pack(numbers((1, 80, 384), dtype, 4), scheme)
    x = jnp.asarray(numbers((50, 384), dtype, 5))
    (together,) = linear(x, [weight], 0, dtype=FLOAT32, level=level)
    for rows in (1, 2, 7, 16, 17, 33):
        (fewer,) = linear(x, [weight], 0, rows=rows, dtype=FLOAT32, level=level)
        np.testing.assert_array_equal(fewer[:rows], together[:rows])
    (alone,) = linear(x[40:41], [weight], 0, dtype=FLOAT32, level=level)
    np.testing.assert_array_equal(alone[0], together[40])


@pytest.mark.parametrize("case", ["bfloat16", "int8", "int8_dynamic", "int4"])
@pytest.mark.parametrize("epilogue", ["none", "add", "silu_mul"])
@pytest.mark.parametrize(
    ("tokens", "inner", "outer"), [(150, 256, 64), (150, 128, 80), (555, 2176, 32)]
)
def test_results_of_many_rows_are_those_of_few(level, case, epilogue, tokens, inner, outer):
    """Many rows overlap sums with results, and write whole lines of these past the caches."""
    scheme = CASES[case][0]
    weights = [pack(numbers((1, outer, inner), BFLOAT16, seed), scheme) for seed in (10, 11)]
    x = jnp.asarray(numbers((tokens, inner), BFLOAT16, 12)) / 16
    residual = jnp.asarray(numbers((tokens, outer), BFLOAT16, 13))

    def run(x, residual):
        given = weights[:1] if epilogue == "add" else weights
        residual = residual if epilogue == "add" else None
        options = {"epilogue": epilogue, "residual": residual, "dtype": BFLOAT16, "level": level}
        return linear(x, given, 0, **options)

    together = run(x, residual)
    for start in range(0, tokens, 100):
        part = slice(start, start + 100)
        for many, few in zip(together, run(x[part], residual[part]), strict=True):
            np.testing.assert_array_equal(many[part], few)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("epilogue", ["none", "add", "silu_mul"])
def test_epilogues_are_those_of_separate_steps(level, epilogue, dtype):
    inner, outer, tokens = 192, 53, 19
    rows = [numbers((2, outer, inner), BFLOAT16, seed) for seed in (6, 7)]
    if epilogue == "add":
        rows = rows[:1]
    x = jnp.asarray(numbers((tokens, inner), BFLOAT16, 8)) / 8
    residual = jnp.asarray(numbers((tokens, outer), dtype, 9)) if epilogue == "add" else None
    got = linear(
        x,
        [pack(one, PLAIN) for one in rows],
        jnp.int32(1),
        epilogue=epilogue,
        residual=residual,
        dtype=dtype,
        level=level,
    )
    wanted = any_linear(
        x.astype(jnp.float32),
        [plain(jnp.asarray(one.astype(np.float32))) for one in rows],
        1,
        epilogue=epilogue,
        residual=None if residual is None else residual.astype(jnp.float32),
        dtype=FLOAT32,
        platform="cpu",
        implementation="reference",
    )
    assert len(got) == len(wanted)
    # Numbers of a few ones: sums err in the sixth digit, bfloat16 results are rounded once.
    tolerance = 2.0**-8 if dtype == BFLOAT16 else 2e-5
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=tolerance, atol=tolerance)


def test_silu_holds_for_extreme_numbers(level):
    """One number for each row of the gate, so that what silu sees is known."""
    values = np.float32([-1e30, -200, -88, -3, -1e-6, 0, 1e-6, 2, 88, 200, 3e37])
    x = np.zeros((len(values), 32), np.float32)
    x[:, 0] = values
    one = np.zeros((1, 16, 32), np.float32)
    one[..., 0] = 1
    up = np.zeros((1, 16, 32), np.float32)
    up[..., 1] = 1
    x[:, 1] = 2
    (got,) = linear(
        jnp.asarray(x),
        [pack(one, PLAIN), pack(up, PLAIN)],
        0,
        epilogue="silu_mul",
        dtype=FLOAT32,
        level=level,
    )
    with np.errstate(over="ignore"):
        wanted = 2 * values.astype(np.float64) / (1 + np.exp(-values.astype(np.float64)))
    # exp is held at 88, so what should vanish is below 1e-36 of its number
    np.testing.assert_allclose(got[:, 3], wanted, rtol=2e-6, atol=1e-5)


def test_several_weights_share_a_call(level):
    x = jnp.asarray(numbers((4, 128), BFLOAT16, 10))
    rows = [numbers((1, outer, 128), BFLOAT16, outer) for outer in (48, 16, 17)]
    together = linear(x, [pack(one, PLAIN) for one in rows], 0, dtype=BFLOAT16, level=level)
    for one, product in zip(rows, together, strict=True):
        (alone,) = linear(x, [pack(one, PLAIN)], 0, dtype=BFLOAT16, level=level)
        np.testing.assert_array_equal(product, alone)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_rows_of_a_table_are_found(case, dtype):
    first_level()
    scheme, stored = CASES[case]
    rows = numbers((1, 37, 256), stored, 11)
    ids = jnp.int32([36, 0, 16, 15, 36, 99, -4])
    got = embed(ids, pack(rows, scheme), dtype)
    wanted = decoded(rows[0], scheme)[[36, 0, 16, 15, 36, 36, 0]].astype(dtype)
    np.testing.assert_array_equal(got, wanted)


def test_the_operation_finds_the_kernel_and_agrees_with_its_reference():
    first_level()
    scheme = SCHEMES["int8_dynamic"]
    rows, x = numbers((2, 24, 128), BFLOAT16, 12), jnp.asarray(numbers((3, 128), BFLOAT16, 13))
    encoded = [quantize(one, scheme) for one in rows]
    values, scales = (jnp.asarray(np.stack(parts)) for parts in zip(*encoded, strict=True))
    weight = QuantizedArray(values, scales, scheme, ROWS, 24, 128)
    got = native_cpu.quantized_matmul(x, pack(rows, scheme), 1)
    wanted = reference.quantized_matmul(x, weight, 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)  # float32 sums in the reference


def test_rows_and_layer_may_be_known_only_when_it_runs():
    first_level()
    weight = pack(numbers((3, 16, 64), FLOAT32, 14), PLAIN)
    x = jnp.asarray(numbers((6, 64), FLOAT32, 15))

    @jax.jit
    def program(layer, rows):
        return linear(x, [weight], layer, rows=rows, dtype=FLOAT32)[0]

    for layer, rows in [(0, 6), (2, 1), (1, 0)]:
        (wanted,) = linear(x, [weight], layer, dtype=FLOAT32)
        np.testing.assert_array_equal(program(layer, rows)[:rows], wanted[:rows])
        assert not np.asarray(program(layer, rows))[rows:].any()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"platform": "cuda"}, "written for cpu"),
        ({"layout": ROWS}, "reads the layout 'native'"),
        ({"dtype": jnp.dtype(jnp.float16)}, "not float16"),
        ({"scheme": SCHEMES["int4"]._replace(group=64)}, "groups of 128, not 64"),
        ({"inner": 16}, "at least 32"),
        ({"scheme": SCHEMES["int8"], "inner": 1 << 17}, "65536"),
    ],
)
def test_obstacles_are_said_in_words(changed, reason):
    first_level()
    call = MatmulShape("cpu", BFLOAT16, PLAIN, NATIVE, 4, 64, 128)
    assert native_cpu.obstacle(call) is None
    assert reason in (native_cpu.obstacle(call._replace(**changed)) or "")
