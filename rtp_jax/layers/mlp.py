"""GatedMLP: two maps up, one of them a gate, and one map down.

Source: Shazeer 2020, GLU variants (arXiv:2002.05202), SwiGLU in equation 6.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rtp_jax.layers.linear import Linear


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, mlp_size: int, *, bias: bool = False, dtype: jnp.dtype):
        embed, mlp = ("embed", hidden_size), ("mlp", mlp_size)
        self.gate = Linear(embed, mlp, bias=bias, dtype=dtype)
        self.up = Linear(embed, mlp, bias=bias, dtype=dtype)
        self.down = Linear(mlp, embed, bias=bias, dtype=dtype)

    def __call__(self, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
