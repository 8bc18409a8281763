"""How do the tensors of a quantized matrix become its values?  No number is computed anew.

The result is what `quant/schemes.py` describes: values and scales of rows.  Where groups were made
along another order of the columns, the values come in that order, and the order with them.

Read next: `quantized.py` for the layouts, `encoder.py` for who calls this while loading.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rtp_jax.quant.schemes import INT4_OFFSET, in_pairs, out_of_pairs
from rtp_jax.weights.convert import write
from rtp_jax.weights.encoder import WrongPart
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.quantized import BLOCK

AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)  # which row of eight is in the n-th four bits of a word
INT8_OFFSET = 128
FLOAT8_NAN = 0x7F  # with either sign

Parts = Mapping[str, np.ndarray]


class Unpacked(NamedTuple):
    """A matrix in layout `rows` of its scheme."""

    values: np.ndarray  # as `values_shape` says
    scales: np.ndarray  # [outer, groups] float32
    zeros: np.ndarray | None = None  # [outer, groups] uint8
    order: np.ndarray | None = None  # [inner] int32: the column of each value


def unpack(kind: MatrixFormat, parts: Parts) -> Unpacked:
    """Turn the tensors of a matrix into its values.

    Args:
      kind: its format.
      parts: by the last word of their names, with the shapes of `parts_of`; optional ones may be
        absent.

    Raises:
      WrongPart: what a tensor holds contradicts the format.
    """
    return _UNPACK[kind.layout](kind, parts)


def _gptq(kind: MatrixFormat, parts: Parts) -> Unpacked:
    if "bias" in parts and parts["bias"].any():
        raise WrongPart("bias", "it is not zero, and the model has no bias there")
    stored = out_of_words(parts["qzeros"]).T  # [outer, groups]
    zeros = stored if kind.layout == "gptq_v2" else (stored + 1) & 15
    values = _swapped(parts["qweight"]).view(np.uint8)
    return _grouped(kind, values, parts["scales"].T, zeros, parts, ("qzeros", "g_idx"))


def _awq(kind: MatrixFormat, parts: Parts) -> Unpacked:
    values = in_pairs(_awq_rows(parts["qweight"]))
    zeros = _awq_rows(parts["qzeros"])
    return _grouped(kind, values, parts["scales"].T, zeros, parts, ("qzeros", ""))


def _awq_rows(words: np.ndarray) -> np.ndarray:
    """Take [n, rows / 8] apart, to uint8 [rows, n]."""
    columns = _swapped(words)
    rows = np.empty((len(columns), 8, columns.shape[1]), np.uint8)
    for place, row in enumerate(AWQ_ROWS):
        rows[:, row] = columns >> (4 * place) & 15
    return rows.reshape(-1, columns.shape[1])


def _packed(kind: MatrixFormat, parts: Parts) -> Unpacked:
    words, scales = parts["weight_packed"], parts["weight_scale"]
    outer, inner = len(words), words.shape[1] * 32 // kind.scheme.bits
    if "weight_shape" in parts and parts["weight_shape"].tolist() != [outer, inner]:
        says = parts["weight_shape"].tolist()
        raise WrongPart("weight_shape", f"it says {says} and the matrix is {[outer, inner]}")
    values = words.view(np.uint8)
    if kind.scheme.bits == 8:
        return Unpacked((values ^ INT8_OFFSET).view(np.int8), scales)
    zeros = None
    if kind.scheme.zeros:
        zeros = out_of_words(parts["weight_zero_point"].T).T[:outer]
    names = ("weight_zero_point", "weight_g_idx")
    return _grouped(kind, values, scales, zeros, parts, names)


def _rows(kind: MatrixFormat, parts: Parts) -> Unpacked:
    return Unpacked(_numbers(kind, parts), parts["weight_scale"][:, None])


def _tensor(kind: MatrixFormat, parts: Parts) -> Unpacked:
    values = _numbers(kind, parts)
    return Unpacked(values, np.broadcast_to(parts["weight_scale"], (len(values), 1)))


def _blocks(name: str) -> Callable[[MatrixFormat, Parts], Unpacked]:
    def unpack_blocks(kind: MatrixFormat, parts: Parts) -> Unpacked:
        values = _numbers(kind, parts)
        return Unpacked(values, parts[name].repeat(BLOCK, axis=0)[: len(values)])

    return unpack_blocks


def _numbers(kind: MatrixFormat, parts: Parts) -> np.ndarray:
    """Give the values as they are, if they are numbers."""
    values = parts["weight"]
    if kind.scheme.floating and (values.view(np.uint8) & FLOAT8_NAN == FLOAT8_NAN).any():
        raise WrongPart("weight", "it has values that are not a number")
    return values


_UNPACK: dict[str, Callable[[MatrixFormat, Parts], Unpacked]] = {
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "packed": _packed,
    "rows": _rows,
    "tensor": _tensor,
    "blocks": _blocks("weight_scale"),
    "blocks_inverse": _blocks("weight_scale_inv"),
}


def _grouped(
    kind: MatrixFormat,
    values: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    parts: Parts,
    names: tuple[str, str],
) -> Unpacked:
    """Check zero points and groups, which have these names, and put columns into their order."""
    of_zeros, of_groups = names
    if not kind.scheme.zeros and zeros is not None:
        if (zeros != INT4_OFFSET).any():
            raise WrongPart(of_zeros, "it has zero points other than 8, and config.json has none")
        zeros = None
    scales = np.ascontiguousarray(scales)
    zeros = None if zeros is None else np.ascontiguousarray(zeros)
    inner = values.shape[1] * 2
    order = _order(parts[of_groups], kind, inner, of_groups) if of_groups in parts else None
    if order is None:
        return Unpacked(values, scales, zeros)
    return Unpacked(in_pairs(out_of_pairs(values)[:, order]), scales, zeros, order)


def _order(group_of: np.ndarray, kind: MatrixFormat, inner: int, name: str) -> np.ndarray | None:
    """Order the columns by their groups, those of a group as they are; None: they are in order."""
    group = kind.scheme.group or inner
    in_place = np.arange(inner, dtype=np.int32) // group
    trivial = np.array_equal(group_of, in_place) or bool((group_of == -1).all())
    if not kind.ordered:
        if not trivial:
            raise WrongPart(name, "it orders columns, and config.json says that nothing does")
        return None
    order = np.argsort(in_place if trivial else group_of, kind="stable").astype(np.int32)
    if not trivial and not np.array_equal(group_of[order], in_place):
        raise WrongPart(
            name, f"it does not put {group} columns into each of {inner // group} groups"
        )
    return order


def out_of_words(words: np.ndarray) -> np.ndarray:
    """Take [m, n] words apart, to uint8 [m, 8 n]: eight numbers 0..15 each, the lowest first."""
    return out_of_pairs(np.ascontiguousarray(words).view(np.uint8))


def _swapped(words: np.ndarray) -> np.ndarray:
    """Transpose [m, n] in memory."""
    swapped = np.empty(words.shape[::-1], words.dtype)
    write(swapped, words.T)
    return swapped
