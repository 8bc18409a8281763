"""Linear: `x @ kernel.T + bias`, with the kernel [out, in] as checkpoints store it.

Both operands are read along their last axis, which is also the order in which the CPU's matmul
wants to stream weights.  Sums are float32 whatever the dtype.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rtp_jax.layers.parameter import parameter


def multiply(
    x: Float[Array, "tokens inner"], kernel: Float[Array, "outer inner"]
) -> Float[Array, "tokens outer"]:
    """Compute `x @ kernel.T` in float32 from operands of one dtype."""
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, preferred_element_type=jnp.float32)


class Linear(nnx.Module):
    """A linear map between two logical axes."""

    def __init__(
        self,
        inner: tuple[str, int],
        outer: tuple[str, int],
        *,
        bias: bool = False,
        dtype: jnp.dtype,
    ):
        self.kernel = parameter(dict([outer, inner]), dtype)
        self.bias = parameter(dict([outer]), dtype) if bias else None

    def __call__(self, x: Float[Array, "tokens inner"]) -> Float[Array, "tokens outer"]:
        product = multiply(x, self.kernel[...])
        if self.bias is not None:
            product += self.bias[...].astype(jnp.float32)
        return product.astype(x.dtype)
