"""Matrix: a weight [outer, inner] in the encoding that suits its target.

A checkpoint stores numbers, or values and scales in some layout; what a model holds may be the same
numbers, values and scales of a scheme, or bytes packed for a kernel.  A matrix declares both: the
loader reads `stored` and the encoder (`runner/encoders.py`) turns it into the parameters that are
held.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtp_jax.errors import InvalidArgument
from rtp_jax.kernels.native import packing
from rtp_jax.kernels.quantized_matmul import native_cpu
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.layers.encoding import Encoding
from rtp_jax.layers.parameter import parameter
from rtp_jax.layers.target import Target
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray
from rtp_jax.quant.schemes import Scheme, num_groups, values_dtype, values_shape
from rtp_jax.weights.quantized import parts_of

GROUPS = (128, 64, 32)  # numbers that may share a scale, best first


class Matrix(nnx.Module):
    """A linear map between two logical axes, without the arithmetic."""

    def __init__(
        self, outer: tuple[str, int], inner: tuple[str, int], *, target: Target, scheme: Scheme
    ):
        source = target.format
        if source is None:
            scheme = fitting(scheme, inner[1])
        else:
            parts_of(source, outer[1], inner[1])  # refuses a matrix that the layout cannot hold
            scheme = held(source.scheme, inner[1])
        layout = _layout(target, scheme, outer[1], inner[1])
        dtype = np.dtype(target.dtype)
        self.encoding = Encoding(scheme, layout, outer[1], inner[1], dtype, source)
        scales = zeros = None
        if layout == NATIVE:
            size = packing.block_bytes(scheme, inner[1], dtype)
            blocks = -(-outer[1] // packing.BLOCK_ROWS)
            self.values = parameter({outer[0]: blocks, "bytes": size}, jnp.dtype(jnp.uint8))
        elif scheme.is_quantized:
            rows, columns = values_shape(scheme, outer[1], inner[1])
            axes = {outer[0]: rows, inner[0]: columns}
            self.values = parameter(axes, jnp.dtype(values_dtype(scheme)))
            axes = {outer[0]: rows, "groups": num_groups(scheme, inner[1])}
            scales = parameter(axes, jnp.dtype(jnp.float32))
            zeros = parameter(axes, jnp.dtype(jnp.uint8)) if scheme.zeros else None
        else:
            self.values = parameter(dict([outer, inner]), target.dtype)
        ordered = source is not None and source.ordered
        self.scales, self.zeros = scales, zeros
        self.order = parameter(dict([inner]), jnp.dtype(jnp.int32)) if ordered else None
        self.values.set_metadata(encoding=self.encoding)

    def array(self) -> QuantizedArray:
        """Give the stack of matrices to an operation; a lone matrix is a stack of one."""
        scheme, layout, outer, inner, *_ = self.encoding
        is_lone = self.values[...].ndim == 2
        values, scales, zeros, order = (
            None if part is None else part[...][None] if is_lone else part[...]
            for part in (self.values, self.scales, self.zeros, self.order)
        )
        assert values is not None
        return QuantizedArray(values, scales, scheme, layout, outer, inner, zeros, order)


def held(scheme: Scheme, inner: int) -> Scheme:
    """Split the groups of a checkpoint's int4 into those of the kernels, of the same scales."""
    kernels = packing.INT4_GROUP
    group = scheme.group or inner
    if scheme.bits == 4 and group % kernels == 0:
        return scheme._replace(group=kernels)
    return scheme


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


def _layout(target: Target, scheme: Scheme, outer: int, inner: int) -> str:
    """Pack for the native kernels if they will run, else keep rows, which everything reads."""
    if target.native is None or target.matmul not in ("auto", "native_cpu"):
        return ROWS
    call = MatmulShape(target.platform, target.dtype, scheme, NATIVE, 1, outer, inner)
    return ROWS if native_cpu.obstacle(call) else NATIVE
