"""What a kernel of quantized matmul is asked before it is chosen: every static fact of a call.

Read next: `reference.py`.

Every kernel file of this folder has `PLATFORMS`, `obstacle(call)`, which answers with a reason in
words, or None, and `quantized_matmul(x, weight, layer, *, rows)`, which is called only where there
is no obstacle.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rtp_jax.quant.quantized_array import QuantizedArray
from rtp_jax.quant.schemes import Scheme


class MatmulShape(NamedTuple):
    """One call of quantized matmul, as far as it is known while tracing."""

    platform: str  # what the program is compiled for: "cpu" or "cuda"
    dtype: jnp.dtype  # of x
    scheme: Scheme
    layout: str  # of the weight's values
    tokens: int  # rows of x, padding included
    outer: int
    inner: int

    @classmethod
    def of(
        cls, platform: str, x: Float[Array, "tokens inner"], weight: QuantizedArray
    ) -> "MatmulShape":
        """Describe the call that multiplies `x` by one matrix of `weight`."""
        return cls(
            platform=platform,
            dtype=jnp.dtype(x.dtype),
            scheme=weight.scheme,
            layout=weight.layout,
            tokens=x.shape[0],
            outer=weight.outer,
            inner=weight.inner,
        )
