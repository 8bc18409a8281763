"""Attention: project to heads, turn them by position, store KV, attend to pages, project back."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.paged_attention import paged_attention
from rtp_jax.kernels.pages import KVPages, StepInputs, write_kv
from rtp_jax.layers.linear import Linear
from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.rope import Rotation, rotate


class Heads(NamedTuple):
    """How the width of a model is divided."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Target(NamedTuple):
    """What a program is built for: platform, dtype, and the attention that was asked for."""

    platform: str
    dtype: jnp.dtype
    attention: str = "auto"


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
        dtype = target.dtype
        self.query = Linear(embed, queries, bias=bias, dtype=dtype)
        self.key = Linear(embed, kv, bias=bias, dtype=dtype)
        self.value = Linear(embed, kv, bias=bias, dtype=dtype)
        self.output = Linear(queries, embed, bias=output_bias, dtype=dtype)
        self.query_norm = make_norm() if make_norm else None
        self.key_norm = make_norm() if make_norm else None
        self.head_dim, self.platform = heads.head_dim, target.platform
        self.implementation = target.attention

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        pages: KVPages,
        layer: Int32[Array, ""],
        step: StepInputs,
        *,
        turn: Rotation,
        window: Int32[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "tokens hidden"], KVPages]:
        query, key, value = (
            self._heads(project(x)) for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, turn), rotate(key, turn)
        pages = write_kv(pages, layer, key, value, step)
        mixed = paged_attention(
            query,
            pages,
            layer,
            step,
            scale=self.head_dim**-0.5,
            sliding_window=window,
            platform=self.platform,
            implementation=self.implementation,
        )
        return self.output(mixed.reshape(x.shape[0], -1)), pages

    def _heads(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens heads head_dim"]:
        return x.reshape(x.shape[0], -1, self.head_dim)
