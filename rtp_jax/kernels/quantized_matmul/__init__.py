"""Quantized matmul: `x @ weight.T` for a weight that is stored in some scheme.

Read `reference.py` for what it means, then `xla.py` and the kernels for how it is fast.  Every
kernel file has the same names: `PLATFORMS`, `obstacle`, `quantized_matmul` (see `shape.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.choice import choose
from rtp_jax.kernels.quantized_matmul import mosaic_gpu, native_cpu, reference, xla, xla_cpu
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import QuantizedArray

# Best first.
KERNELS = {"native_cpu": native_cpu, "mosaic_gpu": mosaic_gpu, "xla_cpu": xla_cpu, "xla": xla}


def quantized_matmul(
    x: Float[Array, "tokens inner"],
    weight: QuantizedArray,
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
    platform: str,
    implementation: str = "auto",
) -> Float[Array, "tokens outer"]:
    """Multiply `x` by the transposed matrix of one layer: `x @ number(weight[layer]).T`.

    Args:
      x: float32 or bfloat16.  A dynamic scheme rounds each row to the kind of its values by its
        largest magnitude (of each group, if it has them), halves to even; the others multiply `x`
        as it is.
      weight: a stack of matrices [outer, inner]; see `quant/schemes.py` for their numbers.  Where
        its columns have an order, `x` is put into it here, so that no kernel needs to know.
      layer: which matrix of the stack.
      rows: how many leading rows of `x` matter; the others are finite, and what comes of them is
        finite and means nothing.  None: all matter.
      platform: what the program is compiled for, "cpu" or "cuda".
      implementation: "auto", "reference" or a name in `KERNELS`.

    Returns:
      float32, summed in float32, or in int32 where both operands are int8.

    Raises:
      KernelError: the implementation asked for does not exist or cannot serve.
    """
    if weight.order is not None:
        order = jax.lax.dynamic_index_in_dim(weight.order, layer, keepdims=False)
        x = jnp.take(x, order, axis=1, unique_indices=True, mode="clip")
        weight = dataclasses.replace(weight, order=None)
    call = MatmulShape.of(platform, x, weight)
    obstacles = {name: kernel.obstacle(call) for name, kernel in KERNELS.items()}
    name = choose("quantized_matmul", obstacles, implementation)
    chosen = reference if name == "reference" else KERNELS[name]
    return chosen.quantized_matmul(x, weight, layer, rows=rows)
