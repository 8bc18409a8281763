"""Matrix: a weight [outer, inner] in the encoding that suits its target.

A checkpoint stores numbers; what a model holds may be the same numbers, values and scales of a
scheme, or bytes packed for a kernel.  A matrix declares both: the loader reads `stored` and the
encoder (`runner/encoders.py`) turns it into the parameters that are held.
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

GROUPS = (128, 64, 32)  # numbers that may share a scale, best first


class Matrix(nnx.Module):
    """A linear map between two logical axes, without the arithmetic."""

    def __init__(
        self, outer: tuple[str, int], inner: tuple[str, int], *, target: Target, scheme: Scheme
    ):
        scheme = fitting(scheme, inner[1])
        layout = _layout(target, scheme, outer[1], inner[1])
        self.encoding = Encoding(scheme, layout, outer[1], inner[1], np.dtype(target.dtype))
        scales = None
        if layout == NATIVE:
            size = packing.block_bytes(scheme, inner[1], np.dtype(target.dtype))
            blocks = -(-outer[1] // packing.BLOCK_ROWS)
            self.values = parameter({outer[0]: blocks, "bytes": size}, jnp.dtype(jnp.uint8))
        elif scheme.is_quantized:
            rows, columns = values_shape(scheme, outer[1], inner[1])
            axes = {outer[0]: rows, inner[0]: columns}
            self.values = parameter(axes, jnp.dtype(values_dtype(scheme)))
            axes = {outer[0]: rows, "groups": num_groups(scheme, inner[1])}
            scales = parameter(axes, jnp.dtype(jnp.float32))
        else:
            self.values = parameter(dict([outer, inner]), target.dtype)
        self.scales = scales
        self.values.set_metadata(encoding=self.encoding)

    def array(self) -> QuantizedArray:
        """Give the stack of matrices to an operation; a lone matrix is a stack of one."""
        scheme, layout, outer, inner, _ = self.encoding
        values, scales = self.values[...], None if self.scales is None else self.scales[...]
        if values.ndim == 2:
            values, scales = values[None], None if scales is None else scales[None]
        return QuantizedArray(values, scales, scheme, layout, outer, inner)


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
