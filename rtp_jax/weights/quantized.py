"""How do quantized matrices lie in checkpoints?  Which tensors make one matrix [outer, inner].

    gptq      qweight [inner/8, outer] int32, eight numbers of a column in a word, the first lowest
              qzeros  [groups, outer/8] int32, likewise, each zero point less 1 (gptq_v2: as it is)
              scales  [groups, outer];  g_idx [inner] int32: which group a column is in
    awq       qweight [inner, outer/8], qzeros [groups, outer/8] int32: a word holds eight rows, the
              lowest four bits are row 0, then 2 4 6 1 3 5 7;  scales [groups, outer]
    packed    weight_packed [outer, inner/8] int32 as in gptq (8 bits: four in a word), each number
              plus half its range;  weight_scale [outer, groups];  weight_zero_point
              [outer/8, groups] int32 if there are any;  weight_g_idx;  weight_shape
    rows      weight [outer, inner] int8 or float8_e4m3fn, weight_scale [outer, 1]
    tensor    the same with one weight_scale
    blocks    the same with a weight_scale for each block of 128 x 128; blocks_inverse calls it
              weight_scale_inv, and it is multiplied by as well

Sources: AutoGPTQ and GPTQModel (gptq), AutoAWQ's GEMM layout (awq), compressed-tensors
(pack-quantized, int-quantized, float-quantized: packed, rows, tensor, blocks) and the
README_WEIGHTS.md of DeepSeek-V3 (blocks_inverse).

Read next: `modules.py` for which matrices these are, `unpack.py` for how they become values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import ml_dtypes
import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.table import Shape, Transform, Weight, as_is

BLOCK = 128  # rows and columns that share a scale of `blocks`
WORD = 32  # bits
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
INT32, INT64, FLOAT32 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)


class Part(NamedTuple):
    """One tensor of a matrix."""

    name: str  # the last word of its name
    dtype: np.dtype
    shape: Shape  # after the transform
    transform: Transform = as_is
    is_optional: bool = False  # it may be absent: it says nothing, and that is checked


class _Sizes(NamedTuple):
    """A matrix, in numbers."""

    outer: int
    inner: int
    groups: int


def parts_of(kind: MatrixFormat, outer: int, inner: int) -> tuple[Part, ...]:
    """List the tensors of a matrix; refuse one that the layout cannot hold."""
    group = kind.scheme.group or inner
    if misfit := _misfit(kind, outer, inner, group):
        raise CheckpointError(
            f"RTPJ-3206 GROUPS_DO_NOT_FIT: quantization_config asks for {kind.layout} with groups"
            f" of {group}, and the model has a matrix [{outer}, {inner}]: {misfit}."
            " Use the config.json of this checkpoint.",
            field="quantization_config",
        )
    return LAYOUTS[kind.layout](kind, _Sizes(outer, inner, inner // group))


def _misfit(kind: MatrixFormat, outer: int, inner: int, group: int) -> str | None:
    per_word = WORD // kind.scheme.bits
    if inner % group:
        return f"{inner} is not whole groups"
    if kind.layout in ("gptq", "gptq_v2", "awq") and (inner % per_word or outer % per_word):
        return f"{per_word} numbers share a word"
    if kind.layout == "packed" and inner % per_word:
        return f"{per_word} numbers of a row share a word"
    return None


def _gptq(kind: MatrixFormat, size: _Sizes) -> tuple[Part, ...]:
    return (
        Part("qweight", INT32, (size.inner // 8, size.outer)),
        Part("qzeros", INT32, (size.groups, size.outer // 8)),
        Part("scales", FLOAT32, (size.groups, size.outer)),
        Part("g_idx", INT32, (size.inner,), is_optional=not kind.ordered),
        Part("bias", FLOAT32, (size.outer,), is_optional=True),  # zeros that old tools write
    )


def _awq(kind: MatrixFormat, size: _Sizes) -> tuple[Part, ...]:
    return (
        Part("qweight", INT32, (size.inner, size.outer // 8)),
        Part("qzeros", INT32, (size.groups, size.outer // 8)),
        Part("scales", FLOAT32, (size.groups, size.outer)),
    )


def _packed(kind: MatrixFormat, size: _Sizes) -> tuple[Part, ...]:
    outer, inner, groups = size
    parts = [
        Part("weight_packed", INT32, (outer, inner * kind.scheme.bits // WORD)),
        Part("weight_scale", FLOAT32, (outer, groups)),
        Part("weight_shape", INT64, (2,), is_optional=True),
        Part("weight_g_idx", INT32, (inner,), is_optional=not kind.ordered),
    ]
    if kind.scheme.zeros:
        parts.append(Part("weight_zero_point", INT32, (-(-outer // 8), groups)))
    return tuple(parts)


def _values(
    name: str, scales: Callable[[_Sizes], Shape], transform: Transform
) -> Callable[[MatrixFormat, _Sizes], tuple[Part, ...]]:
    """Describe a layout of values as they are, and scales under a name and of a shape."""

    def parts(kind: MatrixFormat, size: _Sizes) -> tuple[Part, ...]:
        dtype = FLOAT8 if kind.scheme.floating else np.dtype(np.int8)
        return (
            Part("weight", dtype, (size.outer, size.inner)),
            Part(name, FLOAT32, scales(size), transform),
        )

    return parts


def _num_blocks(size: _Sizes) -> Shape:
    return -(-size.outer // BLOCK), -(-size.inner // BLOCK)


# Tools write scales of rows as [n, 1] or [n], and a single one as [1] or [].
flattened = Transform("flattened", np.ravel, lambda shape: (math.prod(shape),))

LAYOUTS: dict[str, Callable[[MatrixFormat, _Sizes], tuple[Part, ...]]] = {
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "packed": _packed,
    "rows": _values("weight_scale", lambda size: (size.outer,), flattened),
    "tensor": _values("weight_scale", lambda size: (1,), flattened),
    "blocks": _values("weight_scale", _num_blocks, as_is),
    "blocks_inverse": _values("weight_scale_inv", _num_blocks, as_is),
}


def in_parts(
    rows: Sequence[Weight], format_of: Callable[[Weight], MatrixFormat | None]
) -> list[Weight]:
    """Replace the row of each quantized matrix by one for each of its tensors.

    The target of `x.kernel` becomes `x.kernel.qweight`, and so on.  A tensor that has a row of its
    own, such as a bias that the model wants, is no part of the matrix.
    """
    sources = {row.source for row in rows}
    expanded = []
    for row in rows:
        kind = format_of(row)
        if kind is None:
            expanded.append(row)
            continue
        module = row.source.rpartition(".")[0]
        # Only names and transforms are wanted here: any sizes that fit will do.
        for part in LAYOUTS[kind.layout](kind, _Sizes(BLOCK, BLOCK, 1)):
            source = f"{module}.{part.name}"
            if source == row.source or source not in sources:
                target = f"{row.target}.{part.name}"
                expanded.append(
                    replace(
                        row,
                        source=source,
                        target=target,
                        transform=part.transform,
                        kind=kind,
                        is_optional=part.is_optional,
                    )
                )
    return expanded
