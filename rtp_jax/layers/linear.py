"""Linear: `x @ kernel.T + bias`, with the kernel [outer, inner] as checkpoints store it.

Layers of a kind share stacked parameters, so a call names its layer.  Several maps of the same
input go through `project` together.  Sums are float32 whatever the dtype.

Where several devices share the inner axis, each has a part of the sums: they are added in float32
before anything else is (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.linear import linear
from rtp_jax.layers.matrix import Matrix
from rtp_jax.layers.parameter import parameter
from rtp_jax.layers.target import Target


class Place(NamedTuple):
    """Where in the model a call is, and how much of its input matters."""

    layer: Int32[Array, ""]  # within its KV group
    rows: Int32[Array, ""] | None  # leading rows that are no padding; None: all
    stack: Int32[Array, ""] | int | None = None  # row of the parameters' stacks; None: `layer`

    @property
    def row(self) -> Int32[Array, ""] | int:
        """Which row of stacked parameters belongs to the layer."""
        return self.layer if self.stack is None else self.stack


class Linear(nnx.Module):
    """A linear map between two logical axes."""

    def __init__(
        self,
        inner: tuple[str, int],
        outer: tuple[str, int],
        *,
        bias: bool = False,
        target: Target,
    ):
        self.kernel = Matrix(outer, inner, target=target, scheme=target.scheme)
        share = target.mesh.share(*outer)
        self.bias = parameter({outer[0]: share}, target.dtype) if bias else None
        self.summed_over = target.mesh.dividing(inner[0])
        self.platform, self.implementation = target.platform, target.matmul

    def __call__(
        self, x: Float[Array, "tokens inner"], place: Place
    ) -> Float[Array, "tokens outer"]:
        return project(x, [self], place)[0]

    def add_to(
        self,
        residual: Float[Array, "tokens outer"],
        x: Float[Array, "tokens inner"],
        place: Place,
    ) -> Float[Array, "tokens outer"]:
        """Compute `residual + self(x)`."""
        if self.summed_over:
            (part,) = _products(x, [self], place, jnp.dtype(jnp.float32))
            whole = jax.lax.psum(part, self.summed_over)
            return residual + _biased(self, whole, place).astype(x.dtype)
        if self.bias is not None:
            return residual + self(x, place)
        (sum_,) = _products(x, [self], place, x.dtype, epilogue="add", residual=residual)
        return sum_


def project(
    x: Float[Array, "tokens inner"], maps: Sequence[Linear], place: Place
) -> list[Float[Array, "tokens _"]]:
    """Apply several linear maps to one input that every device has."""
    assert not any(one.summed_over for one in maps), "such products are parts of sums: `add_to`"
    if all(one.bias is None for one in maps):
        return list(_products(x, maps, place, x.dtype))
    products = _products(x, maps, place, jnp.dtype(jnp.float32))
    return [
        _biased(one, product, place).astype(x.dtype)
        for one, product in zip(maps, products, strict=True)
    ]


def gated(
    x: Float[Array, "tokens inner"], gate: Linear, up: Linear, place: Place
) -> Float[Array, "tokens outer"]:
    """Compute `silu(gate(x)) * up(x)` for maps without bias."""
    (product,) = _products(x, [gate, up], place, x.dtype, epilogue="silu_mul")
    return product


def _products(x, maps: Sequence[Linear], place: Place, dtype, **epilogue):
    return linear(
        x,
        [one.kernel.array() for one in maps],
        place.row,
        rows=place.rows,
        dtype=dtype,
        platform=maps[0].platform,
        implementation=maps[0].implementation,
        **epilogue,
    )


def _biased(one: Linear, product, place: Place):
    return (
        product if one.bias is None else product + at_layer(one.bias, place, 1).astype(jnp.float32)
    )


def at_layer(variable: nnx.Param, place: Place | None, depth: int) -> Array:
    """Give what belongs to a layer of a stacked parameter; `depth`: its axes without the stack."""
    value = variable[...]
    return value if place is None or value.ndim == depth else value[place.row]
