"""How many bytes does a matrix take as it is held?  Known before jax, or a compiler, is there.

As rows, a matrix takes its values, a float32 scale for each group and, of some schemes, a zero
point.  Packed for the native kernels it is blocks of 16 rows (`kernels/native/matmul.h` draws
them): whole tiles, with scales and what else multiplying needs inside.
"""

from rtp_jax.quant.schemes import GROUPS, Scheme, num_groups

SCALE, ZERO = 4, 1  # bytes, in rows
BLOCK_ROWS, MIN_INNER, TILE = 16, 32, 1024  # rows, numbers, bytes
CELL, LINE = 128, 64  # places of blocks with groups; bytes of a number of each row
PACKED = {"plain", "int8", "int8_dynamic", "fp8", "fp8_block", "int4", "int4_zeros"}
BESIDE = {"int8": 2, "int8_dynamic": 2, "fp8": 1}  # lines of a block: scales, sums


def held_bytes(scheme: Scheme, outer: int, inner: int, itemsize: int, *, packed: bool) -> int:
    """Count the bytes of a matrix [outer, inner].

    Args:
      scheme: one whose groups fit the rows (`fitting`).
      outer: rows.
      inner: numbers of a row.
      itemsize: bytes of a plain number.
      packed: whether the native kernels are to multiply by it.
    """
    if packed and _can_be_packed(scheme, inner):
        return -(-outer // BLOCK_ROWS) * _block_bytes(scheme, inner, itemsize)
    if not scheme.is_quantized:
        return outer * inner * itemsize
    beside = (SCALE + ZERO * scheme.zeros) * num_groups(scheme, inner)
    return outer * (inner * scheme.bits // 8 + beside)


def _can_be_packed(scheme: Scheme, inner: int) -> bool:
    has_groups = scheme.bits == 4 or scheme.group is not None
    whole = not has_groups or (scheme.group in GROUPS and inner % scheme.group == 0)
    return scheme.name in PACKED and whole and inner >= MIN_INNER


def _block_bytes(scheme: Scheme, inner: int, itemsize: int) -> int:
    if scheme.group is not None:
        cell = TILE * scheme.bits // 4 + CELL // scheme.group * (1 + scheme.zeros) * LINE
        return -(-inner // CELL) * cell
    bits = scheme.bits if scheme.is_quantized else 8 * itemsize
    across = TILE * 8 // (BLOCK_ROWS * bits)  # numbers of a row in a tile
    return -(-inner // across) * TILE + BESIDE.get(scheme.name, 0) * LINE
