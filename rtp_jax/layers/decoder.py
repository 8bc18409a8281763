"""Decoder: an embedding, a stack of layers scanned one after another, and a head.

    tokens -> embedding -> [ norm -> attention -> + -> norm -> MLP -> + ] x layers -> norm -> hidden
                                                              hidden rows -> unembed -> logits

All layers share one array of KV pages.  It is carried through the scan, never scanned over: what
is carried is updated in place, what is scanned over is copied at every step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.kernels.pages import KVPages, StepInputs
from rtp_jax.layers.attention import Attention
from rtp_jax.layers.embedding import Embedding
from rtp_jax.layers.mlp import GatedMLP
from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.parameter import stacked
from rtp_jax.layers.rope import Rotation, rotation
from rtp_jax.layers.rope_frequencies import Rope

EVERYTHING = 2**31 - 1  # a window that no context fills


class DecoderLayer(nnx.Module):
    """One layer: each half reads the normalised stream and adds to it."""

    def __init__(self, attention: Attention, mlp: GatedMLP, norms: tuple[RMSNorm, RMSNorm]):
        self.attention_norm, self.mlp_norm = norms
        self.attention, self.mlp = attention, mlp

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        pages: KVPages,
        layer: Int32[Array, ""],
        step: StepInputs,
        *,
        turn: Rotation,
        window: Int32[Array, ""] | int | None,
    ) -> tuple[Float[Array, "tokens hidden"], KVPages]:
        mixed, pages = self.attention(
            self.attention_norm(x), pages, layer, step, turn=turn, window=window
        )
        x = x + mixed
        x = x + self.mlp(self.mlp_norm(x))
        return x, pages


class Positions(NamedTuple):
    """How layers see positions: how far a token turns, and how far back each layer looks."""

    rope: Rope
    windows: Sequence[int | None]  # one for each layer; None: everything


class Decoder(nnx.Module):
    """A causal language model of identical layers with one KV group."""

    def __init__(
        self,
        embedding: Embedding,
        layer: DecoderLayer,
        final_norm: RMSNorm,
        unembedding: Embedding | None,  # None: the embedding serves both ways
        positions: Positions,
    ):
        self.embedding, self.final_norm = embedding, final_norm
        self.unembedding = unembedding
        self.num_layers = len(positions.windows)
        self.layers = stacked(layer, self.num_layers)
        self.rope, self.windows = positions.rope, tuple(positions.windows)

    def __call__(
        self,
        tokens: Int32[Array, " tokens"],
        pages: tuple[KVPages, ...],
        step: StepInputs,
    ) -> tuple[Float[Array, "tokens hidden"], tuple[KVPages, ...]]:
        """Run a step's tokens through all layers; their KV is in the pages that come back."""
        graph, weights = nnx.split(self.layers)
        turn = rotation(self.rope, step.positions[0])
        same_window = len(set(self.windows)) == 1
        windows = jnp.array([w or EVERYTHING for w in self.windows], jnp.int32)

        def advance(carry, row):
            x, kv = carry
            index, window, weights = row
            layer = nnx.merge(graph, weights)
            window = self.windows[0] if same_window else window
            return layer(x, kv, index, step, turn=turn, window=window), None

        (kv,) = pages  # one KV group
        rows = jnp.arange(self.num_layers, dtype=jnp.int32), windows, weights
        (x, kv), _ = jax.lax.scan(advance, (self.embedding(tokens), kv), rows)
        return self.final_norm(x), (kv,)

    def unembed(self, hidden: Float[Array, "rows hidden"]) -> Float32[Array, "rows vocab"]:
        """Score every token of the vocabulary for some hidden states."""
        head = self.embedding if self.unembedding is None else self.unembedding
        return head.unembed(hidden)
