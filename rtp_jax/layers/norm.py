"""RMSNorm: scale a vector to length one per feature, then by a learned factor.

Source: Zhang & Sennrich 2019 (arXiv:1910.07467), equation 4.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.attention import rms_norm
from rtp_jax.layers.linear import Place, at_layer
from rtp_jax.layers.parameter import parameter
from rtp_jax.layers.target import Target


class RMSNorm(nnx.Module):
    """Normalise along the last axis, in float32."""

    def __init__(self, axis: tuple[str, int], *, eps: float, target: Target):
        self.scale = parameter(dict([axis]), target.dtype)
        self.eps, self.native = eps, target.native

    def __call__(
        self, x: Float[Array, "*rows features"], place: Place | None = None
    ) -> Float[Array, "*rows features"]:
        if self.native is not None and x.ndim == 2:
            return self._in_cpp(x, place)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * at_layer(self.scale, place, 1).astype(jnp.float32)).astype(x.dtype)

    def _in_cpp(self, x: Float[Array, "rows features"], place: Place | None) -> Array:
        kernels = library.loaded(self.native)
        assert kernels is not None
        layer, rows = (0, None) if place is None else (place.row, place.rows)
        rows = x.shape[0] if rows is None else rows
        return rms_norm(
            kernels, x, self.scale[...], jnp.int32(layer), jnp.int32(rows), eps=self.eps
        )
