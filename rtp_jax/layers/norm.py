"""RMSNorm: scale a vector to length one per feature, then by a learned factor.

Source: Zhang & Sennrich 2019 (arXiv:1910.07467), equation 4.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rtp_jax.layers.linear import Place, at_layer
from rtp_jax.layers.parameter import parameter


class RMSNorm(nnx.Module):
    """Normalise along the last axis, in float32."""

    def __init__(self, axis: tuple[str, int], *, eps: float, dtype: jnp.dtype):
        self.scale = parameter(dict([axis]), dtype)
        self.eps = eps

    def __call__(
        self, x: Float[Array, "*rows features"], place: Place | None = None
    ) -> Float[Array, "*rows features"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * at_layer(self.scale, place, 1).astype(jnp.float32)).astype(x.dtype)
