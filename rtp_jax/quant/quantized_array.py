"""QuantizedArray: a weight as it lies in memory, with what is needed to read it.

`rows` is the layout that every platform reads: values [layers, outer, inner] in the scheme's dtype
(two in a byte for int4) and float32 scales [layers, outer, groups].  Other layouts are made by the
kernel they are for, when weights are loaded, and only that kernel reads them: `native` is one
opaque array of bytes, blocks of 16 rows, scales inside (`kernels/native/matmul.h`).

A matrix may hold its columns in an `order` of its own: the one in which a quantizer made its groups
(act-order).  What multiplies by it takes the numbers of `x` in that order.

All arrays have a leading axis `layers`, and an operation is told which layer it reads: a kernel
that finds its own rows saves the copy that slicing a stack would make.
"""

import dataclasses

import jax
from jaxtyping import Array, Int32, Num, UInt8

from rtp_jax.quant.schemes import PLAIN, Scheme

ROWS, NATIVE = "rows", "native"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """A stack of matrices [outer, inner] in some scheme and layout."""

    values: Num[Array, "layers ..."]
    scales: Num[Array, "layers outer groups"] | None  # None: plain, or within `values`
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    layout: str = dataclasses.field(metadata={"static": True})
    outer: int = dataclasses.field(metadata={"static": True})
    inner: int = dataclasses.field(metadata={"static": True})
    zeros: UInt8[Array, "layers outer groups"] | None = None  # of a scheme that has them, in `rows`
    order: Int32[Array, "layers inner"] | None = None  # which column comes first, and so on


def plain(values: Num[Array, "layers outer inner"]) -> QuantizedArray:
    """Wrap numbers as they are."""
    _, outer, inner = values.shape
    return QuantizedArray(values, None, PLAIN, ROWS, outer, inner)
