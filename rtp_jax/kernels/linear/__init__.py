"""Linear: several products of the same rows, and what is done with them while they are at hand.

    none      every product, in the dtype asked for
    add       one product, added to a residual
    silu_mul  two products, gate and up: silu(gate) * up

Weights packed for the native kernels go there in one call, which reads and encodes `x` once and
writes no intermediate product; any others, those of several schemes and those whose columns have
an order are products of `quantized_matmul`, one by one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import linear as native
from rtp_jax.kernels.quantized_matmul import quantized_matmul
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray

EPILOGUES = ("none", "add", "silu_mul")


def linear(
    x: Float[Array, "tokens inner"],
    weights: Sequence[QuantizedArray],
    layer: Int32[Array, ""] | int,
    *,
    rows: Int32[Array, ""] | None = None,
    epilogue: str = "none",
    residual: Float[Array, "tokens outer"] | None = None,
    dtype: jnp.dtype,
    platform: str,
    implementation: str = "auto",
) -> tuple[Float[Array, "tokens _"], ...]:
    """Multiply `x` with each of `weights[layer]`, transposed, in float32, then do the epilogue.

    Args:
      x: float32 or bfloat16.
      weights: stacks of matrices [outer, inner].
      layer: which matrix of each stack.
      rows: how many leading rows of `x` matter; the others may come out as anything finite.
      epilogue: one of `EPILOGUES`.
      residual: what "add" adds to.
      dtype: of the results.
      platform: what the program is compiled for, "cpu" or "cuda".
      implementation: of `quantized_matmul`, for weights that do not share a native call.

    Returns:
      One result for each weight, or one for the epilogue.
    """
    assert epilogue in EPILOGUES
    assert (residual is not None) == (epilogue == "add")
    assert len(weights) == {"add": 1, "silu_mul": 2}.get(epilogue, len(weights))
    if _share_a_call(weights):
        return native.linear(
            x, weights, layer, rows=rows, epilogue=epilogue, residual=residual, dtype=dtype
        )
    products = [
        quantized_matmul(
            x, weight, layer, rows=rows, platform=platform, implementation=implementation
        )
        for weight in weights
    ]
    if epilogue == "silu_mul":
        # Rounded before they meet, as they would be between two modules.
        gate, up = (product.astype(dtype) for product in products)
        products = [jax.nn.silu(gate) * up]
    if residual is not None:
        products = [residual + products[0].astype(dtype)]
    return tuple(product.astype(dtype) for product in products)


def _share_a_call(weights: Sequence[QuantizedArray]) -> bool:
    """Whether one native call takes all weights: packed alike, and reading `x` in its own order."""
    kinds = {(weight.layout, weight.scheme, weight.order is None) for weight in weights}
    return kinds == {(NATIVE, weights[0].scheme, True)}
