"""What devices hold of a packed matrix is what one device would hold, cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library, packing
from rtp_jax.layers.encoding import VALUES, Encoding
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, PLAIN, SCHEMES, dequantize, num_groups, quantize
from rtp_jax.runner.encoders import NUMBERS, _of_numbers, _pack_values

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def native():
    if reason := library.load(native_cache()):
        pytest.skip(reason)


def read_back(encoding: Encoding, held: np.ndarray) -> np.ndarray:
    """Read what each device holds, and put it together."""
    (rows, columns), scheme = encoding.parts, encoding.scheme
    parts = [
        packing.unpack(
            QuantizedArray(
                jnp.asarray(blocks[None]), None, scheme, NATIVE, encoding.outer, encoding.inner
            ),
            0,
            FLOAT32,
        )
        for blocks in np.split(held, rows * columns)
    ]
    return np.block([parts[row * columns : (row + 1) * columns] for row in range(rows)])


def room(encoding: Encoding) -> np.ndarray:
    blocks = -(-encoding.outer // packing.BLOCK_ROWS) * encoding.parts[0] * encoding.parts[1]
    return np.zeros(
        (blocks, packing.block_bytes(encoding.scheme, encoding.inner, FLOAT32)), np.uint8
    )


@pytest.mark.parametrize("parts", [(2, 1), (4, 1), (1, 2)])
@pytest.mark.parametrize("scheme", [PLAIN, *SCHEMES.values()], ids=lambda scheme: scheme.name)
def test_parts_of_numbers(scheme, parts):
    outer, inner = 40, 256  # 20 rows or 10 of each are no whole blocks
    numbers = np.random.default_rng(0).standard_normal((outer, inner)).astype(np.float32)
    encoding = Encoding(scheme, NATIVE, outer // parts[0], inner // parts[1], FLOAT32, None, parts)
    held = room(encoding)
    encoder = _of_numbers("m", encoding, {})
    encoder.encode({NUMBERS: numbers}, {"m" + VALUES: held})
    wanted = dequantize(*quantize(numbers, scheme), scheme) if scheme.is_quantized else numbers
    np.testing.assert_array_equal(read_back(encoding, held), wanted)
    assert encoder.block_rows is None  # all of it is needed before any of it is encoded


@pytest.mark.parametrize("parts", [(2, 1), (1, 2)])
def test_parts_of_values_with_zero_points(parts):
    scheme, rng = FROM_CHECKPOINTS["int4_zeros"], np.random.default_rng(0)
    values = rng.integers(0, 256, (32, 128)).astype(np.uint8)
    groups = num_groups(scheme, 256)
    scales = rng.standard_normal((32, groups)).astype(np.float32)
    zeros = rng.integers(0, 16, (32, groups)).astype(np.uint8)
    encoding = Encoding(scheme, NATIVE, 32 // parts[0], 256 // parts[1], FLOAT32, None, parts)
    held = room(encoding)
    _pack_values(encoding, values, scales, zeros, held)
    wanted = dequantize(values, scales, scheme, zeros)
    np.testing.assert_allclose(read_back(encoding, held), wanted, rtol=1e-6)


def test_whole_blocks_of_each_device_are_packed_as_they_come():
    encoding = Encoding(PLAIN, NATIVE, 16, 64, FLOAT32, None, (4, 1))
    assert _of_numbers("m", encoding, {}).block_rows == packing.BLOCK_ROWS
