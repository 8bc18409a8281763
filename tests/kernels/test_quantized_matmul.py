"""Quantized matmul: the reference against float64 NumPy, every kernel against the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rtp_jax.errors import KernelError
from rtp_jax.kernels.quantized_matmul import KERNELS, quantized_matmul, reference, xla_cpu
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray, plain
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, SCHEMES, Scheme, dequantize, quantize

LAYERS = 3
SHAPES = [(1, 128, 16), (5, 256, 48), (64, 384, 40)]  # tokens, inner, outer
EVERY = {**SCHEMES, **FROM_CHECKPOINTS, "int4_zeros_32": FROM_CHECKPOINTS["int4_zeros"]}
EVERY["int4_zeros_32"] = EVERY["int4_zeros_32"]._replace(group=32)
EVERY["int4_row"] = SCHEMES["int4"]._replace(group=None)
NAMES = ["plain", *EVERY]


def inputs(
    name: str, tokens: int, inner: int, outer: int, dtype=jnp.float32
) -> tuple[jax.Array, QuantizedArray, np.ndarray]:
    """Draw rows and a stack of weights, with the float64 numbers of the stack."""
    draw = np.random.default_rng(tokens + inner + outer)
    x = jnp.asarray(draw.standard_normal((tokens, inner)), dtype)
    dense = draw.standard_normal((LAYERS, outer, inner)).astype(np.float32)
    if name == "plain":
        weight = plain(jnp.asarray(dense, dtype))
        return x, weight, np.asarray(weight.values).astype(np.float64)
    scheme = EVERY[name]
    encoded = [quantize(matrix, scheme._replace(zeros=False)) for matrix in dense]
    values, scales = (np.stack(part) for part in zip(*encoded, strict=True))
    zeros = draw.integers(0, 16, scales.shape).astype(np.uint8) if scheme.zeros else None
    weight = QuantizedArray(
        jnp.asarray(values), jnp.asarray(scales), scheme, ROWS, outer=outer, inner=inner
    )
    if zeros is not None:
        weight = dataclasses.replace(weight, zeros=jnp.asarray(zeros))
    numbers = [
        dequantize(values[i], scales[i], scheme, None if zeros is None else zeros[i])
        for i in range(LAYERS)
    ]
    return x, weight, np.stack(numbers).astype(np.float64)


def exact(x: np.ndarray, numbers: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Multiply in float64, rounding rows by the definition first if the scheme does."""
    if not scheme.dynamic:
        return x.astype(np.float64) @ numbers.T
    # A dynamic scheme rounds rows of activations as it rounds rows of weights.
    return (
        dequantize(*quantize(x.astype(np.float32), scheme), scheme).astype(np.float64) @ numbers.T
    )


@functools.cache
def compiled(implementation: str):
    run = functools.partial(quantized_matmul, platform="cpu", implementation=implementation)
    return jax.jit(run)


def cpu_kernels() -> list[str]:
    """Name those that read rows; `native_cpu` reads weights that were packed."""
    on_cpu = [name for name, kernel in KERNELS.items() if "cpu" in kernel.PLATFORMS]
    return [name for name in on_cpu if name != "native_cpu"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_reference_is_right(name, shape):
    x, weight, numbers = inputs(name, *shape)
    for layer in range(LAYERS):
        expected = exact(np.asarray(x), numbers[layer], weight.scheme)
        # float32 sums of `inner` products, whose errors grow like its square root.
        atol = 4 * np.sqrt(shape[1]) * np.finfo(np.float32).eps * np.abs(expected).max()
        actual = compiled("reference")(x, weight, jnp.int32(layer))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# `xla_cpu` is for float8 alone.
SERVED = [
    (kernel, name)
    for kernel in cpu_kernels()
    for name in NAMES
    if kernel != "xla_cpu" or "fp8" in name
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "name"), SERVED)
def test_kernel_matches_reference(kernel, name, shape, dtype):
    x, weight, numbers = inputs(name, *shape, dtype=dtype)
    actual = compiled(kernel)(x, weight, jnp.int32(1))
    expected = np.asarray(compiled("reference")(x, weight, jnp.int32(1)))
    assert actual.dtype == jnp.float32
    # Sums in another order.  Where numbers with groups are rounded to bfloat16, each is off by
    # 2**-9 of it at most, and with `fp8_block` those of x are, too.
    limit = 4 * np.sqrt(shape[1]) * np.finfo(np.float32).eps * np.abs(expected).max()
    if dtype == jnp.bfloat16 and (weight.scheme.bits == 4 or weight.scheme.group):
        limit = limit + 2**-8 * np.abs(np.asarray(x, np.float64)) @ np.abs(numbers[1]).T
    assert (np.abs(np.asarray(actual) - expected) <= limit).all()


@pytest.mark.parametrize("kernel", ["reference", "xla"])
@pytest.mark.parametrize("name", ["int4_zeros", "int8"])
def test_columns_may_come_in_an_order(name, kernel):
    x, weight, numbers = inputs(name, 5, 256, 48)
    draw = np.random.default_rng(1)
    order = np.stack([draw.permutation(256) for _ in range(LAYERS)]).astype(np.int32)
    ordered = dataclasses.replace(weight, order=jnp.asarray(order))
    for layer in range(LAYERS):
        in_place = np.empty_like(numbers[layer])
        in_place[:, order[layer]] = numbers[layer]
        actual = compiled(kernel)(x, ordered, jnp.int32(layer))
        expected = np.asarray(x, np.float64) @ in_place.T
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_every_float8_is_decoded_on_a_cpu():
    every = np.arange(256, dtype=np.uint8).reshape(2, 128)
    bits = every[:, (every[0] & 0x7F) != 0x7F]  # which are NaN
    actual = jax.jit(xla_cpu.decoded)(jnp.asarray(bits))
    np.testing.assert_array_equal(actual, bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_only_float8_is_decoded_so():
    x, weight, _ = inputs("int8", 8, 256, 64)
    assert "it decodes float8" in (xla_cpu.obstacle(MatmulShape.of("cpu", x, weight)) or "")
    assert "the target is cuda" in (xla_cpu.obstacle(MatmulShape.of("cuda", x, weight)) or "")


def test_what_no_gpu_kernel_can_take_xla_does():
    mosaic, xla = KERNELS["mosaic_gpu"], KERNELS["xla"]
    for name in EVERY:
        x, weight, _ = inputs(name, 8, 256, 64, jnp.bfloat16)
        call = MatmulShape.of("cuda", x, weight)
        assert xla.obstacle(call) is None
        if name == "int4_row":
            reason = mosaic.obstacle(call) or ""
            assert "the weight has none" in reason or "jax 0.11" in reason
        else:
            assert "jax 0.11" in (mosaic.obstacle(call) or "jax 0.11")


def test_a_row_of_zeros_stays_zero():
    x, weight, _ = inputs("int8_dynamic", 5, 256, 48)
    x = x.at[2].set(0)
    for implementation in ("reference", "xla"):
        actual = compiled(implementation)(x, weight, jnp.int32(0))
        assert not actual[2].any()
        assert jnp.isfinite(actual).all()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_layer_may_be_a_number(implementation):
    x, weight, _ = inputs("int8", 5, 256, 48)
    actual = quantized_matmul(x, weight, 2, platform="cpu", implementation=implementation)
    expected = compiled(implementation)(x, weight, jnp.int32(2))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_another_platform_is_an_obstacle():
    x, weight, _ = inputs("int8", 5, 256, 48)
    with pytest.raises(KernelError, match=r"RTPJ-6002.*the target is tpu"):
        quantized_matmul(x, weight, 0, platform="tpu", implementation="xla")


def test_a_layout_of_another_kernel_is_an_obstacle():
    x, weight, _ = inputs("int8", 5, 256, 48)
    packed = QuantizedArray(weight.values, None, weight.scheme, NATIVE, 48, 256)
    with pytest.raises(KernelError, match=r"RTPJ-6002.*the weight has 'native'"):
        quantized_matmul(x, packed, 0, platform="cpu", implementation="xla")


def test_an_unknown_implementation_is_refused_by_name():
    x, weight, _ = inputs("int8", 5, 256, 48)
    with pytest.raises(KernelError, match="RTPJ-6001"):
        quantized_matmul(x, weight, 0, platform="cpu", implementation="fast")


def test_numbers_of_the_reference_are_those_of_the_scheme():
    for name in EVERY:
        _, weight, numbers = inputs(name, 1, 256, 48)
        np.testing.assert_array_equal(reference.numbers(weight, 1), numbers[1].astype(np.float32))
