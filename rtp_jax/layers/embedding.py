"""Embedding: token ids to vectors, and hidden states back to logits over the vocabulary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.kernels.embed import embed
from rtp_jax.kernels.linear import linear
from rtp_jax.layers.matrix import Matrix
from rtp_jax.layers.target import Target
from rtp_jax.quant.schemes import PLAIN


class Embedding(nnx.Module):
    """A table [vocab, embed]: looked up by tokens, or multiplied as the head of a model."""

    def __init__(self, vocab_size: int, hidden_size: int, *, is_head: bool, target: Target):
        vocab, embed_axis = ("vocab", vocab_size), ("embed", hidden_size)
        if not is_head:  # looked up only: nothing to gain from a kernel's layout
            target = target._replace(matmul="xla")
        scheme = target.head_scheme if is_head else PLAIN
        self.table = Matrix(vocab, embed_axis, target=target, scheme=scheme)
        self.target = target

    def __call__(self, tokens: Int32[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        return embed(tokens, self.table.array(), dtype=self.target.dtype)

    def unembed(
        self, hidden: Float[Array, "rows hidden"], rows: Int32[Array, ""] | None
    ) -> Float32[Array, "rows vocab"]:
        """Score every token of the vocabulary for the first `rows` hidden states."""
        (logits,) = linear(
            hidden,
            [self.table.array()],
            0,
            rows=rows if self.target.skip_padding else None,
            dtype=jnp.dtype(jnp.float32),
            platform=self.target.platform,
            implementation=self.target.matmul,
        )
        return logits
