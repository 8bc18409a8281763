"""Weights in the layout of the native kernels, as tests make them."""

import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.native import packing
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray
from rtp_jax.quant.schemes import Scheme, quantize

FLOAT32 = np.dtype(np.float32)


def numbers(shape, dtype, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def pack(rows: np.ndarray, scheme: Scheme) -> QuantizedArray:
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


def with_zeros(rows: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode rows, and draw zero points, which shifts the numbers of each group."""
    values, scales = quantize(rows, scheme._replace(zeros=False))
    zeros = np.random.default_rng(rows.size).integers(0, 16, scales.shape)
    return values, scales, zeros.astype(np.uint8)


def packed_values(values: np.ndarray, scales: np.ndarray, scheme: Scheme) -> QuantizedArray:
    """Pack values [outer, inner] without zero points as a stack of one."""
    outer, inner = values.shape
    size = packing.block_bytes(scheme, inner, FLOAT32)
    blocks = np.full((1, -(-outer // packing.BLOCK_ROWS), size), 255, np.uint8)
    packing.pack_values(values, scales, None, scheme, blocks[0])
    return QuantizedArray(jnp.asarray(blocks), None, scheme, NATIVE, outer, inner)
