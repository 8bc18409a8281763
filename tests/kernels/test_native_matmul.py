"""Products with packed weights, at every level that this machine runs, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.linear import linear as any_linear
from rtp_jax.kernels.native import packing
from rtp_jax.kernels.native.library import Library
from rtp_jax.kernels.native.linear import embed, linear
from rtp_jax.kernels.quantized_matmul import native_cpu, reference
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray, plain
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, PLAIN, SCHEMES, dequantize, quantize
from tests.kernels.packed import numbers, pack, with_zeros

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
CASES = {  # scheme and dtype of x, which is that of plain weights
    "float32": (PLAIN, FLOAT32),
    "bfloat16": (PLAIN, BFLOAT16),
    "int8": (SCHEMES["int8"], BFLOAT16),
    "int8_float32": (SCHEMES["int8"], FLOAT32),
    "int8_dynamic": (SCHEMES["int8_dynamic"], BFLOAT16),
    "int4": (SCHEMES["int4"], BFLOAT16),
    "int4_zeros": (FROM_CHECKPOINTS["int4_zeros"], BFLOAT16),
    "int4_64": (SCHEMES["int4"]._replace(group=64), BFLOAT16),
    "int4_32": (SCHEMES["int4"]._replace(group=32), FLOAT32),
    "int4_zeros_64": (FROM_CHECKPOINTS["int4_zeros"]._replace(group=64), FLOAT32),
    "int4_zeros_32": (FROM_CHECKPOINTS["int4_zeros"]._replace(group=32), BFLOAT16),
    "fp8": (SCHEMES["fp8"], BFLOAT16),
    "fp8_float32": (SCHEMES["fp8"], FLOAT32),
    "fp8_block": (FROM_CHECKPOINTS["fp8_block"], BFLOAT16),
}
# tokens, rows that matter, inner, outer: tiles that are not full, several passes of x
SHAPES = [(1, 1, 256, 48), (5, 3, 384, 40), (33, 30, 128, 17), (70, 70, 640, 96)]
LONG = (530, 520, 2176, 33)


def decoded(rows: np.ndarray, scheme) -> np.ndarray:
    """The numbers that a matrix [outer, inner] has become, by the definition."""
    if not scheme.is_quantized:
        return rows.astype(np.float32)
    if scheme.zeros:
        values, scales, zeros = with_zeros(rows, scheme)
        return dequantize(values, scales, scheme, zeros)
    return dequantize(*quantize(rows, scheme), scheme)


def rounded_x(x: np.ndarray, scheme) -> np.ndarray:
    """What is multiplied: x, or x after it was rounded by token, or token and group."""
    x = x.astype(np.float32)
    if scheme.floating:
        return dequantize(*quantize(x, scheme), scheme).astype(np.float64)
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


@pytest.mark.parametrize(
    "case",
    ["bfloat16", "int8", "int8_dynamic", "int4", "int4_zeros", "int4_zeros_32", "fp8", "fp8_block"],
)
def test_products_of_many_rows_in_several_passes(best_level, case):
    check_product(best_level, case, LONG)


@pytest.mark.parametrize(
    ("case", "inner"), [("fp8", 75), ("int4_32", 96), ("int4_zeros_32", 32), ("int4_64", 192)]
)
def test_rows_need_not_fill_the_last_tile(level, case, inner):
    check_product(level, case, (21, 20, inner, 40))


def check_product(level: Library, case: str, shape):
    (scheme, dtype), (tokens, rows, inner, outer) = CASES[case], shape
    weights, x = numbers((2, outer, inner), dtype, 0), numbers((tokens, inner), dtype, 1)
    (out,) = linear(
        jnp.asarray(x), [pack(weights, scheme)], 1, rows=rows, dtype=FLOAT32, level=level.level
    )
    number = decoded(weights[1], scheme).astype(np.float64)
    wanted = rounded_x(x[:rows], scheme) @ number.T
    # Terms are exact but for float32; sums of n terms err by at most n units in the last place.
    bound = np.abs(rounded_x(x[:rows], scheme)) @ np.abs(number).T
    assert (np.abs(np.asarray(out)[:rows] - wanted) <= bound * inner * 2.0**-24).all()
    assert not np.asarray(out)[rows:].any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_among_activations_spreads_over_its_row(level, case, bad):
    scheme, dtype = CASES[case]
    weight, x = pack(numbers((1, 40, 256), dtype, 16), scheme), numbers((3, 256), dtype, 17)
    (clean,) = linear(jnp.asarray(x), [weight], 0, dtype=FLOAT32, level=level.level)
    x[1, 200] = bad
    (out,) = linear(jnp.asarray(x), [weight], 0, dtype=FLOAT32, level=level.level)
    assert not np.isfinite(out[1]).any()
    np.testing.assert_array_equal(out[::2], clean[::2])


@pytest.mark.parametrize("case", ["bfloat16", "int8", "int8_dynamic", "int4", "int4_32", "fp8"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_no_number_among_weights_stays_none(level, case, bad):
    scheme, dtype = CASES[case]
    rows, x = numbers((1, 40, 256), dtype, 18), jnp.asarray(numbers((3, 256), dtype, 19))
    (clean,) = linear(x, [pack(rows, scheme)], 0, dtype=FLOAT32, level=level.level)
    rows[0, 21, 130] = bad
    (out,) = linear(x, [pack(rows, scheme)], 0, dtype=FLOAT32, level=level.level)
    assert not np.isfinite(out[:, 21]).any()
    np.testing.assert_array_equal(np.delete(out, 21, axis=1), np.delete(clean, 21, axis=1))


@pytest.mark.parametrize("case", ["int8", "int4", "int4_32", "fp8", "fp8_block"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("outer", "inner"), [(16, 128), (37, 256), (3, 1152)])
def test_packing_agrees_with_the_definition_to_the_bit(level, case, dtype, outer, inner):
    scheme, rows = CASES[case][0], numbers((1, outer, inner), dtype, 2)
    rows[0, 0, :128] = 0  # a group, and in one case most of a row
    rows[0, 1, 5:7] = [4, -4]  # equal magnitudes: the first decides
    packed = pack(rows, scheme)
    np.testing.assert_array_equal(packing.unpack(packed, 0, dtype), decoded(rows[0], scheme))


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("case", ["int8", "int8_dynamic", "int4", "int4_64", "fp8", "fp8_block"])
@pytest.mark.parametrize(("outer", "inner"), [(16, 128), (37, 384)])
def test_values_are_packed_as_their_numbers_are(case, outer, inner):
    scheme, rows = CASES[case][0], numbers((1, outer, inner), FLOAT32, 2)
    expected = np.asarray(pack(rows, scheme).values[0])
    packed = np.full_like(expected, 255)
    packing.pack_values(*quantize(rows[0], scheme), None, scheme, packed)
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("outer", "inner"), [(16, 32), (21, 75), (5, 67)])
def test_plain_rows_are_packed_as_they_are(dtype, outer, inner):
    rows = numbers((2, outer, inner), dtype, 3)
    packed = pack(rows, PLAIN)
    np.testing.assert_array_equal(packing.unpack(packed, 1, dtype), rows[1].astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_those_beside_it(level, case):
    scheme, dtype = CASES[case]
    weight = pack(numbers((1, 80, 384), dtype, 4), scheme)
    x = jnp.asarray(numbers((50, 384), dtype, 5))
    (together,) = linear(x, [weight], 0, dtype=FLOAT32, level=level.level)
    for rows in (1, 2, 7, 16, 17, 33):
        (fewer,) = linear(x, [weight], 0, rows=rows, dtype=FLOAT32, level=level.level)
        np.testing.assert_array_equal(fewer[:rows], together[:rows])
    (alone,) = linear(x[40:41], [weight], 0, dtype=FLOAT32, level=level.level)
    np.testing.assert_array_equal(alone[0], together[40])


@pytest.mark.parametrize("case", ["bfloat16", "int8", "int8_dynamic", "int4", "fp8", "fp8_block"])
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
        options = {
            "epilogue": epilogue,
            "residual": residual,
            "dtype": BFLOAT16,
            "level": level.level,
        }
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
        level=level.level,
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
        level=level.level,
    )
    with np.errstate(over="ignore"):
        wanted = 2 * values.astype(np.float64) / (1 + np.exp(-values.astype(np.float64)))
    # exp is held at 88, so what should vanish is below 1e-36 of its number
    np.testing.assert_allclose(got[:, 3], wanted, rtol=2e-6, atol=1e-5)


def test_several_weights_share_a_call(level):
    x = jnp.asarray(numbers((4, 128), BFLOAT16, 10))
    rows = [numbers((1, outer, 128), BFLOAT16, outer) for outer in (48, 16, 17)]
    together = linear(x, [pack(one, PLAIN) for one in rows], 0, dtype=BFLOAT16, level=level.level)
    for one, product in zip(rows, together, strict=True):
        (alone,) = linear(x, [pack(one, PLAIN)], 0, dtype=BFLOAT16, level=level.level)
        np.testing.assert_array_equal(product, alone)


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_rows_of_a_table_are_found(case, dtype):
    scheme, stored = CASES[case]
    rows = numbers((1, 37, 256), stored, 11)
    ids = jnp.int32([36, 0, 16, 15, 36, 99, -4])
    got = embed(ids, pack(rows, scheme), dtype)
    wanted = decoded(rows[0], scheme)[[36, 0, 16, 15, 36, 36, 0]].astype(dtype)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("best_level")
def test_the_operation_finds_the_kernel_and_agrees_with_its_reference():
    scheme = SCHEMES["int8_dynamic"]
    rows, x = numbers((2, 24, 128), BFLOAT16, 12), jnp.asarray(numbers((3, 128), BFLOAT16, 13))
    encoded = [quantize(one, scheme) for one in rows]
    values, scales = (jnp.asarray(np.stack(parts)) for parts in zip(*encoded, strict=True))
    weight = QuantizedArray(values, scales, scheme, ROWS, 24, 128)
    got = native_cpu.quantized_matmul(x, pack(rows, scheme), 1)
    wanted = reference.quantized_matmul(x, weight, 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)  # float32 sums in the reference


@pytest.mark.usefixtures("best_level")
def test_rows_and_layer_may_be_known_only_when_it_runs():
    weight = pack(numbers((3, 16, 64), FLOAT32, 14), PLAIN)
    x = jnp.asarray(numbers((6, 64), FLOAT32, 15))

    @jax.jit
    def program(layer, rows):
        return linear(x, [weight], layer, rows=rows, dtype=FLOAT32)[0]

    for layer, rows in [(0, 6), (2, 1), (1, 0)]:
        (wanted,) = linear(x, [weight], layer, dtype=FLOAT32)
        np.testing.assert_array_equal(program(layer, rows)[:rows], wanted[:rows])
        assert not np.asarray(program(layer, rows))[rows:].any()


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"platform": "cuda"}, "written for cpu"),
        ({"layout": ROWS}, "reads the layout 'native'"),
        ({"dtype": jnp.dtype(jnp.float16)}, "not float16"),
        ({"scheme": SCHEMES["int4"]._replace(group=16)}, "groups of 128, 64, 32, not 16"),
        ({"scheme": SCHEMES["int4"]._replace(group=None)}, "not None"),
        ({"scheme": SCHEMES["int4"], "inner": 192}, "rows of 192 are not whole groups of 128"),
        ({"inner": 16}, "at least 32"),
        ({"scheme": SCHEMES["int8"], "inner": 1 << 17}, "65536"),
    ],
)
def test_obstacles_are_said_in_words(changed, reason):
    call = MatmulShape("cpu", BFLOAT16, PLAIN, NATIVE, 4, 64, 128)
    assert native_cpu.obstacle(call) is None
    assert reason in (native_cpu.obstacle(call._replace(**changed)) or "")
