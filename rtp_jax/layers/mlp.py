"""GatedMLP: two maps up, one of them a gate, and one map down.

Source: Shazeer 2020, GLU variants (arXiv:2002.05202), SwiGLU in equation 6.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from rtp_jax.layers.linear import Linear, Place, gated, project
from rtp_jax.layers.target import Target


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, mlp_size: int, *, bias: bool = False, target: Target):
        embed, mlp = ("embed", hidden_size), ("mlp", mlp_size)
        self.gate = Linear(embed, mlp, bias=bias, target=target.at("gate"))
        self.up = Linear(embed, mlp, bias=bias, target=target.at("up"))
        self.down = Linear(mlp, embed, bias=bias, target=target.at("down"))

    def add_to(
        self,
        residual: Float[Array, "tokens hidden"],
        x: Float[Array, "tokens hidden"],
        place: Place,
    ) -> Float[Array, "tokens hidden"]:
        """Add the MLP of `x` to the residual stream."""
        return self.down.add_to(residual, self.widened(x, place), place)

    def widened(self, x: Float[Array, "tokens hidden"], place: Place) -> Float[Array, "tokens mlp"]:
        """Compute what the map down takes."""
        if self.gate.bias is None:
            return gated(x, self.gate, self.up, place)
        gate, up = project(x, [self.gate, self.up], place)
        return jax.nn.silu(gate) * up
