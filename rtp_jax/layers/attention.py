"""Attention: project to heads, turn them by position, store KV, attend to pages, project back."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.attention import HeadNorms, rope_kv
from rtp_jax.kernels.paged_attention import paged_attention
from rtp_jax.kernels.pages import KVGroup, StepInputs, write_kv
from rtp_jax.layers.linear import Linear, Place, project
from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.rope import Rotation, rotate
from rtp_jax.layers.target import Target

Projected = tuple[
    Float[Array, "tokens query_width"],
    Float[Array, "tokens kv_width"],
    Float[Array, "tokens kv_width"],
]


NATIVE_HEAD_DIM = 512  # the largest that `rope_kv` turns


class Heads(NamedTuple):
    """How the width of a model is divided."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Attention(nnx.Module):
    """Grouped-query attention over KV pages."""

    def __init__(
        self,
        heads: Heads,
        *,
        target: Target,
        bias: bool = False,
        output_bias: bool = False,
        make_norm: Callable[[], RMSNorm] | None = None,  # of each head's query, and of its key
    ):
        embed = ("embed", heads.hidden_size)
        queries = ("heads", heads.num_heads * heads.head_dim)
        kv = ("kv_heads", heads.num_kv_heads * heads.head_dim)
        self.query = Linear(embed, queries, bias=bias, target=target.at("query"))
        self.key = Linear(embed, kv, bias=bias, target=target.at("key"))
        self.value = Linear(embed, kv, bias=bias, target=target.at("value"))
        self.output = Linear(queries, embed, bias=output_bias, target=target.at("output"))
        self.query_norm = make_norm() if make_norm else None
        self.key_norm = make_norm() if make_norm else None
        self.head_dim, self.platform = heads.head_dim, target.platform
        self.implementation = target.attention
        self.native = target.native if heads.head_dim <= NATIVE_HEAD_DIM else None

    def add_to(
        self,
        residual: Float[Array, "tokens hidden"],
        x: Float[Array, "tokens hidden"],
        kv: KVGroup,
        place: Place,
        step: StepInputs,
        *,
        turn: Rotation,
        window: Int32[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "tokens hidden"], KVGroup]:
        """Add the attention of `x` to the residual stream; its KV is in the pages of the group."""
        mixed, kv = self.mix(x, kv, place, step, turn=turn, window=window)
        return self.output.add_to(residual, mixed, place), kv

    def mix(
        self,
        x: Float[Array, "tokens hidden"],
        kv: KVGroup,
        place: Place,
        step: StepInputs,
        *,
        turn: Rotation,
        window: Int32[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "tokens query_width"], KVGroup]:
        """Attend, up to the map back to the width of the model."""
        query, key, value = project(x, [self.query, self.key, self.value], place)
        in_cpp = self.native is not None and kv.rounding is None
        place_heads = self._place_heads_in_cpp if in_cpp else self._place_heads
        query, kv = place_heads((query, key, value), kv, place, step, turn)
        mixed = paged_attention(
            query,
            kv.pages,
            place.layer,
            step,
            scale=self.head_dim**-0.5,
            sliding_window=window,
            scales=kv.scales,
            platform=self.platform,
            implementation=self.implementation,
        )
        return mixed.reshape(x.shape[0], -1), kv

    def _place_heads(
        self, projected: Projected, kv: KVGroup, place: Place, step: StepInputs, turn: Rotation
    ) -> tuple[Float[Array, "tokens heads head_dim"], KVGroup]:
        """Turn queries by their positions; turn keys and write them and values to the pages."""
        query, key, value = map(self._heads, projected)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query, place), self.key_norm(key, place)
        query, key = rotate(query, turn), rotate(key, turn)
        return query, write_kv(kv, place.layer, key, value, step)

    def _place_heads_in_cpp(
        self, projected: Projected, kv: KVGroup, place: Place, step: StepInputs, turn: Rotation
    ) -> tuple[Float[Array, "tokens heads head_dim"], KVGroup]:
        """Do the same in one pass over the projections, for the tokens that are no padding."""
        norms, kernels = None, library.loaded(self.native)
        assert kernels is not None
        if self.query_norm is not None and self.key_norm is not None:
            factors = self.query_norm.scale[...], self.key_norm.scale[...]
            norms = HeadNorms(*factors, place.row, self.query_norm.eps)
        return rope_kv(
            kernels, projected, kv, place.layer, step, cos=turn.cos, sin=turn.sin, norms=norms
        )

    def _heads(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens heads head_dim"]:
        return x.reshape(x.shape[0], -1, self.head_dim)
