"""Embedding: token ids to vectors, and hidden states back to logits over the vocabulary.

Several devices share the vocabulary: each looks up the ids that it has, and scores them.
"""

import jax
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
        self.target, self.divided = target, target.mesh.dividing("vocab")

    def __call__(self, tokens: Int32[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        table, dtype = self.table.array(), self.target.dtype
        if not self.divided:
            return embed(tokens, table, dtype=dtype)
        here = tokens - jax.lax.axis_index(self.divided) * table.outer
        has = (here >= 0) & (here < table.outer)
        vectors = embed(jnp.where(has, here, 0), table, dtype=dtype).astype(jnp.float32)
        # One device has each token and all others add zeros, so the sum is exact.
        return jax.lax.psum(jnp.where(has[:, None], vectors, 0), self.divided).astype(dtype)

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
        if not self.divided:
            return logits
        return jax.lax.all_gather(logits, self.divided, axis=1, tiled=True)
