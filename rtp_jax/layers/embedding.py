"""Embedding: token ids to vectors, and hidden states back to logits over the vocabulary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.layers.linear import multiply
from rtp_jax.layers.parameter import parameter


class Embedding(nnx.Module):
    """A table [vocab, embed]: looked up by tokens, or multiplied as the head of a model."""

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: jnp.dtype):
        self.table = parameter({"vocab": vocab_size, "embed": hidden_size}, dtype)

    def __call__(self, tokens: Int32[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        return self.table[...][tokens]

    def unembed(self, hidden: Float[Array, "rows hidden"]) -> Float32[Array, "rows vocab"]:
        """Score every token of the vocabulary."""
        return multiply(hidden, self.table[...])
