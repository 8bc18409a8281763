"""How does a tensor become the numbers of a parameter: another layout, another dtype?

Floats of a checkpoint (float32, bfloat16, float16) are rounded to the dtype that the model runs in.
Any other dtype, such as int32 of a quantized model, is taken as it is or not at all.

Read next: `loader.py`, which calls this for each tensor.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

TILE = 256  # rows and columns; by tiles is 1.5 (to float32) to 5 times (bfloat16) NumPy's own speed

# Gives an array of a shape and a dtype whose contents are anything, on a 64-byte boundary.
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]

FLOATS = frozenset(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))


def convertible(source: np.dtype, target: np.dtype) -> bool:
    """Whether numbers of one dtype may be stored as another."""
    return source == target or {source, target} <= FLOATS


def write(target: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` into `target`, of the same shape, rounding to its dtype.

    A transposed source is copied in tiles, which fit into the processor's cache.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if source.ndim < 2 or source.flags.c_contiguous:
            np.copyto(target, source, casting="unsafe")
        elif source.ndim > 2:
            for part, of_source in zip(target, source, strict=True):
                write(part, of_source)
        else:
            _write_tiles(target, source)


def _write_tiles(target: np.ndarray, source: np.ndarray) -> None:
    rows, columns = target.shape
    for i in range(0, columns, TILE):
        for j in range(0, rows, TILE):
            target[j : j + TILE, i : i + TILE] = source[j : j + TILE, i : i + TILE]


def overflowed(target: np.ndarray, source: np.ndarray) -> bool:
    """Whether finite numbers became infinite, as those above 65504 do in float16."""
    if target.dtype != np.float16 or source.dtype not in FLOATS - {target.dtype}:
        return False
    return bool(np.any(np.isinf(target) & np.isfinite(source)))


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make an empty array on a 64-byte boundary, which jax on a CPU takes without a copy."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(num_bytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + num_bytes].view(dtype).reshape(shape)
