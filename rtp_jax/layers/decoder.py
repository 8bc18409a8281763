"""Decoder: an embedding, a stack of layers scanned one after another, and a head.

    tokens -> embedding -> [ norm -> attention -> + -> norm -> MLP -> + ] x layers -> norm -> hidden
                                                              hidden rows -> unembed -> logits

All layers of a KV group share one array of pages.  It is carried through the scan, never scanned
over: what is carried is updated in place, what is scanned over is copied at every step.  Weights
are not scanned over either: a layer is told its number, and whoever reads a stack finds its own
rows.  Neighbours of one group are scanned over together, so two groups make two scans or more.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from rtp_jax.kernels.pages import KVGroup, StepInputs
from rtp_jax.layers.attention import Attention
from rtp_jax.layers.embedding import Embedding
from rtp_jax.layers.linear import Place
from rtp_jax.layers.mlp import GatedMLP
from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.parameter import stacked
from rtp_jax.layers.rope import Rotation, rotation
from rtp_jax.layers.rope_frequencies import Rope
from rtp_jax.layers.target import Target

EVERYTHING = 2**31 - 1  # a window that no context fills


class DecoderLayer(nnx.Module):
    """One layer: each half reads the normalised stream and adds to it."""

    def __init__(self, attention: Attention, mlp: GatedMLP, norms: tuple[RMSNorm, RMSNorm]):
        self.attention_norm, self.mlp_norm = norms
        self.attention, self.mlp = attention, mlp

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        kv: KVGroup,
        place: Place,
        step: StepInputs,
        *,
        turn: Rotation,
        window: Int32[Array, ""] | int | None,
    ) -> tuple[Float[Array, "tokens hidden"], KVGroup]:
        x, kv = self.attention.add_to(
            x, self.attention_norm(x, place), kv, place, step, turn=turn, window=window
        )
        return self.mlp.add_to(x, self.mlp_norm(x, place), place), kv


Carry = tuple[Array, KVGroup]  # the residual stream [tokens, hidden], and a KV group
LayerCall = Callable[..., Carry]


def _call(
    step: StepInputs,
    turn: Rotation,
    layer: DecoderLayer,
    x: Array,
    kv: KVGroup,
    place: Place,
    window: Int32[Array, ""] | int | None,
) -> Carry:
    return layer(x, kv, place, step, turn=turn, window=window)


class Positions(NamedTuple):
    """How layers see positions: how far a token turns, and how far back each layer looks."""

    rope: Rope
    windows: Sequence[int | None]  # one for each layer; None: everything


class Run(NamedTuple):
    """Layers one after the other whose KV is in one group, where they are neighbours as well."""

    first: int  # layer of the model
    length: int
    group: int
    row: int  # of the first layer within the group


def runs(groups: Sequence[int]) -> list[Run]:
    """Divide layers into runs; `groups` has the KV group of each."""
    found: list[Run] = []
    for layer, group in enumerate(groups):
        if found and found[-1].group == group:
            found[-1] = found[-1]._replace(length=found[-1].length + 1)
        else:
            found.append(Run(layer, 1, group, sum(other == group for other in groups[:layer])))
    return found


class Decoder(nnx.Module):
    """A causal language model of identical layers."""

    def __init__(
        self,
        embedding: Embedding,
        make_layer: Callable[[Target], DecoderLayer],
        final_norm: RMSNorm,
        unembedding: Embedding | None,  # None: the embedding serves both ways
        positions: Positions,
        *,
        target: Target,
    ):
        self.embedding, self.final_norm = embedding, final_norm
        self.unembedding = unembedding
        self.num_layers = len(positions.windows)
        if target.unrolled:
            every = [target.at(f"layers.{i}") for i in range(self.num_layers)]
            self.layers = nnx.List([make_layer(one) for one in every])
        else:
            self.layers = stacked(make_layer(target.at("layers")), self.num_layers)
        self.rope, self.windows = positions.rope, tuple(positions.windows)
        self.skip_padding = target.skip_padding
        self.runs = tuple(runs(target.kv_groups or (0,) * self.num_layers))

    def __call__(
        self,
        tokens: Int32[Array, " tokens"],
        groups: tuple[KVGroup, ...],
        step: StepInputs,
    ) -> tuple[Float[Array, "tokens hidden"], tuple[KVGroup, ...]]:
        """Run a step's tokens through all layers; their KV is in the groups that come back."""
        turn = rotation(self.rope, step.positions[0])
        rows = step.num_tokens if self.skip_padding else None
        advance = self._unrolled if isinstance(self.layers, nnx.List) else self._scanned
        x, held, call = self.embedding(tokens), list(groups), functools.partial(_call, step, turn)
        for run in self.runs:
            x, held[run.group] = advance(run, x, held[run.group], rows, call)
        return self.final_norm(x, Place(jnp.int32(0), rows)), tuple(held)

    def _scanned(
        self, run: Run, x: Array, kv: KVGroup, rows: Array | None, call: LayerCall
    ) -> Carry:
        """Run one layer's program once for each, over stacks of parameters."""
        of_run = self.windows[run.first : run.first + run.length]
        same_window = len(set(of_run)) == 1
        windows = jnp.array([w or EVERYTHING for w in of_run], jnp.int32)

        def advance(carry: Carry, row):
            index, window = row
            window = of_run[0] if same_window else window
            place = Place(index + run.row, rows, stack=index + run.first)
            return call(self.layers, *carry, place, window), None

        every = jnp.arange(run.length, dtype=jnp.int32), windows
        return jax.lax.scan(advance, (x, kv), every)[0]

    def _unrolled(
        self, run: Run, x: Array, kv: KVGroup, rows: Array | None, call: LayerCall
    ) -> Carry:
        """Run layer after layer, each with arrays of its own."""
        assert isinstance(self.layers, nnx.List)
        for index in range(run.length):
            place = Place(jnp.int32(run.row + index), rows, stack=0)
            layer = self.layers[run.first + index]
            x, kv = call(layer, x, kv, place, self.windows[run.first + index])
        return x, kv

    def unembed(
        self, hidden: Float[Array, "rows hidden"], rows: Int32[Array, ""] | None = None
    ) -> Float32[Array, "rows vocab"]:
        """Score every token of the vocabulary for the first `rows` hidden states; None: all."""
        head = self.embedding if self.unembedding is None else self.unembedding
        return head.unembed(hidden, rows)
