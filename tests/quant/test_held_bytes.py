"""Bytes of a matrix as it is held: what the native kernels say, and what arrays of rows have."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.packing import BLOCK_ROWS, block_bytes, packing_obstacle
from rtp_jax.quant.held_bytes import held_bytes
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, PLAIN, SCHEMES, quantize

ALL = {"plain": PLAIN} | SCHEMES | FROM_CHECKPOINTS
ALL |= {f"int4_{group}": SCHEMES["int4"]._replace(group=group) for group in (64, 32, 16)}
ALL |= {f"int4_zeros_{g}": FROM_CHECKPOINTS["int4_zeros"]._replace(group=g) for g in (64, 32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("inner", [16, 32, 64, 96, 128, 640])
@pytest.mark.parametrize("name", ALL)
def test_packed_blocks_are_as_large_as_the_kernels_say(name, inner, dtype):
    if reason := library.load(native_cache()):
        pytest.skip(reason)
    scheme = ALL[name]
    if inner % (scheme.group or inner):
        pytest.skip("rows are whole groups")
    itemsize = 4 if dtype == "float32" else 2
    found = held_bytes(scheme, 40, inner, itemsize, packed=True)
    if packing_obstacle(scheme, inner, jnp.dtype(dtype)):
        assert found == held_bytes(scheme, 40, inner, itemsize, packed=False)
    else:
        assert found == -(-40 // BLOCK_ROWS) * block_bytes(scheme, inner, jnp.dtype(dtype))


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_are_as_large_as_their_arrays(name):
    values, scales = quantize(np.ones((40, 256), np.float32), SCHEMES[name])
    assert held_bytes(SCHEMES[name], 40, 256, 4, packed=False) == values.nbytes + scales.nbytes


def test_plain_rows_and_zero_points():
    assert held_bytes(PLAIN, 40, 256, 2, packed=False) == 40 * 256 * 2
    of_two_groups = 40 * (256 // 2 + 2 * (4 + 1))
    zeros = FROM_CHECKPOINTS["int4_zeros"]
    assert held_bytes(zeros, 40, 256, 2, packed=False) == of_two_groups
