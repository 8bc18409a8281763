"""Matrix: a weight [outer, inner] in the encoding that suits its target.

A checkpoint stores numbers, or values and scales in some layout; what a model holds may be the same
numbers, values and scales of a scheme, or bytes packed for a kernel.  A matrix declares both: the
loader reads `stored` and the encoder (`runner/encoders.py`) turns it into the parameters that are
held.

Where several devices share a matrix, each holds some of its rows or some of its columns.  Packed
parts lie end to end, so the blocks of all devices are divided among them whichever it is.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtp_jax.errors import FailedPrecondition
from rtp_jax.kernels.native import packing
from rtp_jax.kernels.quantized_matmul import native_cpu
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.layers.encoding import Encoding
from rtp_jax.layers.parameter import parameter
from rtp_jax.layers.target import Target
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray
from rtp_jax.quant.schemes import GROUPS, Scheme, fitting, num_groups, values_dtype, values_shape
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.quantized import parts_of


class Matrix(nnx.Module):
    """A linear map between two logical axes, without the arithmetic."""

    def __init__(
        self, outer: tuple[str, int], inner: tuple[str, int], *, target: Target, scheme: Scheme
    ):
        source = target.format
        parts = target.mesh.parts(outer[0]), target.mesh.parts(inner[0])
        if source is None:
            scheme = fitting(scheme, inner[1])
            scheme = held(scheme, inner[1], parts[1]) if parts[1] > 1 else scheme
        else:
            parts_of(source, outer[1], inner[1])  # refuses a matrix that the layout cannot hold
            scheme = held(source.scheme, inner[1], parts[1])
        _check_divides(target, source, scheme, inner[1], parts[1])
        outer = outer[0], target.mesh.share(*outer)
        inner = inner[0], target.mesh.share(*inner)
        layout = _layout(target, scheme, outer[1], inner[1])
        dtype = np.dtype(target.dtype)
        self.encoding = Encoding(scheme, layout, outer[1], inner[1], dtype, source, parts)
        scales = zeros = None
        if layout == NATIVE:
            size = packing.block_bytes(scheme, inner[1], dtype)
            blocks = -(-outer[1] // packing.BLOCK_ROWS)
            divided = inner[0] if parts[1] > 1 else outer[0]
            self.values = parameter({divided: blocks, "bytes": size}, jnp.dtype(jnp.uint8))
        elif scheme.is_quantized:
            rows, columns = values_shape(scheme, outer[1], inner[1])
            axes = {outer[0]: rows, inner[0]: columns}
            self.values = parameter(axes, jnp.dtype(values_dtype(scheme)))
            groups = inner[0] if parts[1] > 1 and scheme.group else "groups"
            axes = {outer[0]: rows, groups: num_groups(scheme, inner[1])}
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


def held(scheme: Scheme, inner: int, parts: int = 1) -> Scheme:
    """Split groups of int4 into those of the kernels and of each device, of the same scales."""
    group, share = scheme.group or inner, inner // parts
    split = [one for one in GROUPS if group % one == share % one == 0]
    return scheme._replace(group=split[0]) if scheme.bits == 4 and split else scheme


def _check_divides(
    target: Target, source: MatrixFormat | None, scheme: Scheme, inner: int, parts: int
) -> None:
    """Refuse columns that devices cannot share in the encoding that they have."""
    if parts == 1:
        return
    reason = None
    if scheme.group and (inner // parts) % scheme.group:
        reason = f"its groups of {scheme.group} do not divide the {inner // parts} of each device"
    if source is not None and source.ordered:
        reason = "its groups were made along another order of the columns (act-order)"
    if reason:
        raise FailedPrecondition(
            f"RTPJ-6023 PARTS_DO_NOT_FIT: tensor_parallel_size={target.mesh.size} divides the"
            f" {inner} columns of {target.path} among {parts} devices, and {reason}"
            f" ({scheme.name}). Use fewer devices, or another quantization.",
            field="tensor_parallel_size",
        )


def _layout(target: Target, scheme: Scheme, outer: int, inner: int) -> str:
    """Pack for the native kernels if they will run, else keep rows, which everything reads."""
    if target.native is None or target.matmul not in ("auto", "native_cpu"):
        return ROWS
    call = MatmulShape(target.platform, target.dtype, scheme, NATIVE, 1, outer, inner)
    return ROWS if native_cpu.obstacle(call) else NATIVE
