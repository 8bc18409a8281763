"""Schemes: how the numbers of a weight are encoded, and what they decode to.

A weight is a matrix [outer, inner], as checkpoints store it; a row has one scale, or one for each
group of consecutive numbers along `inner`:

    number[o, i] = value[o, i] * scale[o, i // group]           int8, int8_dynamic, fp8, fp8_block
    number[o, i] = (value[o, i] - 8) * scale[o, i // group]     int4: values 0..15, two in a byte,
                                                                the even one in the low half
    number[o, i] = (value[o, i] - zero[o, g]) * scale[o, g]     int4_zeros: g is i // group, a zero
                                                                is 0..15 as well

What the operation does with activations is part of the scheme: `int8` and both of int4 multiply
numbers as the model computes them, `int8_dynamic` rounds each token to int8 by its own largest
number, and `fp8` to float8_e4m3fn, of which its weights are as well.  `fp8_block` rounds each group
of a token by the largest number of that group.

Everything here is plain NumPy and is the definition: faster quantizers must agree to the bit.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rtp_jax.errors import InvalidArgument

Array = NDArray[Any]


class Scheme(NamedTuple):
    """An encoding of weights."""

    name: str
    bits: int  # of one stored number
    group: int | None  # numbers along `inner` that share a scale; None: all of a row
    dynamic: bool = False  # activations are rounded as well, each token by its largest number
    floating: bool = False  # values are float8_e4m3fn, not integers
    zeros: bool = False  # each group has a zero point of its own

    @property
    def is_quantized(self) -> bool:
        """Whether numbers are stored in fewer bits than the model computes in."""
        return self.bits < 16


PLAIN = Scheme("plain", 16, None)  # numbers as they are, in the dtype of the model
SCHEMES = {
    "int8": Scheme("int8", 8, None),
    "int8_dynamic": Scheme("int8_dynamic", 8, None, dynamic=True),
    "int4": Scheme("int4", 4, 128),
    "fp8": Scheme("fp8", 8, None, dynamic=True, floating=True),
}
# What only checkpoints bring, because they were calibrated or trained that way.
FROM_CHECKPOINTS = {
    "int4_zeros": Scheme("int4_zeros", 4, 128, zeros=True),
    "fp8_block": Scheme("fp8_block", 8, 128, dynamic=True, floating=True),
}
INT4_OFFSET = 8
GROUPS = (128, 64, 32)  # numbers that may share a scale, best first
INT8_MAX, FP8_MAX = 127, 448  # the largest values
# What the matrix that makes logits is kept in by itself: they decide, so not in fewer than 8 bits.
HEAD_SCHEMES = {"int4": "int8_dynamic"}


def schemes_of(name: str | None, head: str = "auto") -> tuple[Scheme, Scheme]:
    """Give the schemes of a model's matrices: those of its layers, and the one of its head.

    Args:
      name: of the layers; None leaves numbers as they are.
      head: of the head; "auto" follows the layers but keeps at least 8 bits, "none" leaves it.
    """
    known, layers = {"none": PLAIN, **SCHEMES}, name or "none"
    return known[layers], known[HEAD_SCHEMES.get(layers, layers) if head == "auto" else head]


def fitting(scheme: Scheme, inner: int) -> Scheme:
    """Let a scheme with groups have the largest that divides a row, or refuse the row."""
    if scheme.group is None or inner % scheme.group == 0:
        return scheme
    for group in GROUPS:
        if group < scheme.group and inner % group == 0:
            return scheme._replace(group=group)
    raise InvalidArgument(
        f"RTPJ-6021 SCHEME_DOES_NOT_FIT: quantization={scheme.name} gives one scale to"
        f" {', '.join(map(str, GROUPS))} numbers of a row, and this model has rows of {inner}."
        " Use quantization=int8_dynamic.",
        field="quantization",
    )


def num_groups(scheme: Scheme, inner: int) -> int:
    """Count the scales of a row; `inner` must be whole groups."""
    group = scheme.group or inner
    assert inner % group == 0, f"{scheme.name}: {inner} is not whole groups of {group}"
    return inner // group


def values_shape(scheme: Scheme, outer: int, inner: int) -> tuple[int, int]:
    """Shape of the stored values of a matrix."""
    return (outer, inner // 2) if scheme.bits == 4 else (outer, inner)


def values_dtype(scheme: Scheme) -> np.dtype:
    """Dtype of the stored values of a quantized scheme."""
    if scheme.floating:
        return np.dtype(ml_dtypes.float8_e4m3fn)
    return np.dtype(np.uint8 if scheme.bits == 4 else np.int8)


def quantize(numbers: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Encode a matrix [outer, inner] of float32 or bfloat16, each number to the nearest value.

    Returns:
      Values as `values_shape` says, and scales [outer, groups] float32.  The scale of a group is
      its largest magnitude over 127 (int8), 448 (fp8) or 8, with the sign that makes it value 0
      (int4), as GGML's Q4_0 does; a group of zeros has scale 0.
    """
    assert numbers.dtype in (np.float32, ml_dtypes.bfloat16)
    assert not scheme.zeros, "zero points come with a checkpoint"
    outer, inner = numbers.shape
    groups = numbers.astype(np.float32).reshape(outer, num_groups(scheme, inner), -1)
    if scheme.bits == 8:
        largest = FP8_MAX if scheme.floating else INT8_MAX
        scales = np.abs(groups).max(-1) / np.float32(largest)
        values = _divided(groups, scales)
        values = (values if scheme.floating else np.rint(values)).astype(values_dtype(scheme))
        return values.reshape(outer, inner), scales
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = extreme / np.float32(-INT4_OFFSET)
    values = np.clip(np.rint(_divided(groups, scales)) + INT4_OFFSET, 0, 15)
    return in_pairs(values.astype(np.uint8).reshape(outer, inner)), scales


def dequantize(values: Array, scales: Array, scheme: Scheme, zeros: Array | None = None) -> Array:
    """Decode to float32 [outer, inner]; `zeros` [outer, groups] of a scheme that has them."""
    if scheme.bits == 4:
        values = out_of_pairs(values)
    groups = values.astype(np.float32).reshape(len(values), scales.shape[1], -1)
    if scheme.zeros:
        assert zeros is not None
        groups = groups - zeros[..., None].astype(np.float32)
    elif scheme.bits == 4:
        groups = groups - INT4_OFFSET
    return (groups * scales[..., None]).reshape(len(values), -1)


def in_pairs(values: Array) -> Array:
    """Put two values 0..15 into each byte, the even one in the low half."""
    return values[:, 0::2] | values[:, 1::2] << 4


def out_of_pairs(pairs: Array) -> Array:
    """Undo `in_pairs`."""
    return np.stack([pairs & 15, pairs >> 4], -1).reshape(len(pairs), -1)


def _divided(groups: Array, scales: Array) -> Array:
    """Divide by scales, where a scale of 0 stands for a group of zeros."""
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return groups * inverse[..., None]
