"""Packs the rows of a weight into the blocks that the native kernels read.

What a block is, is drawn in `matmul.h`; which bytes it holds depends on the scheme and, for plain
weights, on their dtype.  Calls leave the interpreter's lock, so threads may pack side by side.
"""

import ctypes

import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.native import library
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray
from rtp_jax.quant.schemes import Scheme

BLOCK_ROWS = 16
MIN_INNER = 32  # shorter rows would fill the same tile in float32 and in bfloat16
MAX_INNER = 65536  # so that sums of int8 products fit in int32
_NUMBERS = {  # of `Scheme` in `matmul.h`, by name, and group if there are several
    ("plain float32", None): 0,
    ("plain bfloat16", None): 1,
    ("int8", None): 2,
    ("int8_dynamic", None): 3,
    ("int4", 128): 4,
    ("int4_zeros", 128): 5,
    ("fp8", None): 6,
    ("fp8_block", 128): 7,
    ("int4", 64): 8,
    ("int4_zeros", 64): 9,
    ("int4", 32): 10,
    ("int4_zeros", 32): 11,
}
_NAMES = {name for name, _ in _NUMBERS}


def scheme_number(scheme: Scheme, dtype: np.dtype) -> int:
    """Give the number that `matmul.h` has for a scheme; `dtype` is that of plain numbers."""
    name = scheme.name if scheme.is_quantized else f"{scheme.name} {np.dtype(dtype).name}"
    return _NUMBERS[name, scheme.group]


def packing_obstacle(scheme: Scheme, inner: int, dtype: np.dtype) -> str | None:
    """Say in words why rows of `inner` numbers cannot be packed, or return None if they can."""
    if not scheme.is_quantized and np.dtype(dtype).name not in ("float32", "bfloat16"):
        return f"it packs plain float32 and bfloat16, not {np.dtype(dtype).name}"
    if scheme.is_quantized and scheme.name not in _NAMES:
        return f"it does not know the scheme {scheme.name}"
    if scheme.is_quantized and (scheme.name, scheme.group) not in _NUMBERS:
        known = [str(group) for name, group in _NUMBERS if name == scheme.name]
        return f"its {scheme.name} has groups of {', '.join(known)}, not {scheme.group}"
    if inner % (scheme.group or 1):
        return f"rows of {inner} are not whole groups of {scheme.group}"
    if inner < MIN_INNER:
        return f"it packs rows of at least {MIN_INNER} numbers, not {inner}"
    if scheme.is_quantized and not scheme.floating and inner > MAX_INNER:
        return f"its integer sums hold rows of {MAX_INNER} numbers, not {inner}"
    return None


def block_bytes(scheme: Scheme, inner: int, dtype: np.dtype) -> int:
    """Give the bytes of a block of 16 rows of `inner` numbers; `dtype` is that of plain ones."""
    assert packing_obstacle(scheme, inner, dtype) is None
    functions = _functions()
    functions.rtp_block_bytes.restype = ctypes.c_int64
    return functions.rtp_block_bytes(*_whole(scheme_number(scheme, dtype), inner))


def pack_rows(rows: np.ndarray, scheme: Scheme, out: np.ndarray) -> None:
    """Encode and pack a matrix into whole blocks; rows and places that are absent become zeros.

    Args:
      rows: float32 or bfloat16 [outer, inner], contiguous.  Plain weights keep its dtype.
      scheme: as in `quant/schemes.py`, with whose `quantize` this agrees to the bit.
      out: uint8 [blocks, block_bytes], contiguous; all of it is written.
    """
    outer, inner = rows.shape
    blocks = -(-outer // BLOCK_ROWS)
    assert not scheme.zeros, "zero points come with a checkpoint"
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert rows.flags.c_contiguous
    assert out.shape == (blocks, block_bytes(scheme, inner, rows.dtype)), (out.shape, rows.shape)
    number = scheme_number(scheme, rows.dtype)
    is_bfloat16 = rows.dtype == jnp.bfloat16
    _functions().rtp_pack_rows(
        *_whole(number), _address(rows), *_whole(is_bfloat16, outer, inner), _address(out)
    )


def pack_values(
    values: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    scheme: Scheme,
    out: np.ndarray,
) -> None:
    """Pack a matrix that is encoded already into whole blocks, as `pack_rows` packs numbers.

    Args:
      values: of the scheme, [outer, inner] int8 or float8, or [outer, inner / 2] pairs of int4.
      scales: float32 [outer, groups].
      zeros: uint8 [outer, groups] of a scheme that has zero points.
      scheme: any but a plain one.
      out: uint8 [blocks, block_bytes], contiguous; all of it is written.
    """
    outer, inner = len(values), values.shape[1] * (2 if scheme.bits == 4 else 1)
    blocks = -(-outer // BLOCK_ROWS)
    plain = np.dtype(np.float32)
    assert out.flags.c_contiguous
    assert out.shape == (blocks, block_bytes(scheme, inner, plain)), (out.shape, values.shape)
    assert scales.shape == (outer, inner // (scheme.group or inner)), scales.shape
    assert scheme.zeros == (zeros is not None)
    assert zeros is None or (zeros.dtype, zeros.shape) == (np.uint8, scales.shape)
    values, scales = np.ascontiguousarray(values), np.ascontiguousarray(scales, np.float32)
    zeros = np.empty(0, np.uint8) if zeros is None else np.ascontiguousarray(zeros)
    _functions().rtp_pack_values(
        *_whole(scheme_number(scheme, plain)),
        _address(values),
        _address(scales),
        _address(zeros),
        *_whole(outer, inner),
        _address(out),
    )


def unpack(weight: QuantizedArray, layer: int, dtype: np.dtype) -> np.ndarray:
    """Read a packed matrix back as float32 [outer, inner]; `dtype` is that of plain numbers."""
    assert weight.layout == NATIVE
    blocks = np.ascontiguousarray(weight.values[layer])
    out = np.empty((weight.outer, weight.inner), np.float32)
    _functions().rtp_unpack_rows(
        *_whole(scheme_number(weight.scheme, dtype)),
        _address(blocks),
        *_whole(weight.outer, weight.inner),
        _address(out),
    )
    return out


def _functions() -> ctypes.CDLL:
    found = library.loaded()
    assert found is not None, "what packs weights has asked `library.obstacle` before"
    return found.functions


def _whole(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
