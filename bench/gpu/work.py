"""What a step has to read and compute, from a model's config alone: no jax, no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """The numbers of a dense decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sizes":
        """Read a `config.json`."""
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["intermediate_size"],
            config["vocab_size"],
            config["tie_word_embeddings"],
        )

    @property
    def layer_parameters(self) -> int:
        """Numbers in the matrices of one layer."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.mlp

    @property
    def head_parameters(self) -> int:
        """Numbers in the matrix that makes logits."""
        return self.vocab * self.hidden


class Work(NamedTuple):
    """What a step does: each of `batch` sequences brings `new` tokens behind `before` others."""

    batch: int
    new: int
    before: int

    def num_bytes(self, sizes: Sizes, itemsize: int) -> int:
        """Bytes that must be read: all matrices, but not an embedding of its own, and all KV."""
        weights = sizes.layers * sizes.layer_parameters + sizes.head_parameters
        kv = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * (self.before + self.new)
        return (weights + self.batch * kv) * itemsize

    def flops(self, sizes: Sizes) -> int:
        """Multiplications and additions: layers for each token, the head for each sequence."""
        tokens = self.batch * self.new
        pairs = tokens * (self.before + (self.new + 1) / 2)
        attention = 4 * sizes.layers * sizes.heads * sizes.head_dim * pairs
        products = sizes.layers * sizes.layer_parameters * tokens
        return int(2 * products + 2 * sizes.head_parameters * self.batch + attention)


# What the engine and its peers are both timed at: batch, context.
DECODES = tuple((batch, 2048) for batch in (1, 8, 16, 32, 64, 128, 256))
DECODES += ((1, 128), (1, 32768), (16, 16384), (256, 512))
PREFILLS = ((2048, 0), (2048, 14336))  # new tokens, tokens before them


def works(*, dry: bool) -> dict[str, Work]:
    """Name the steps that are timed."""
    decodes, prefills = (((2, 100),), ((64, 100),)) if dry else (DECODES, PREFILLS)
    named = {f"decode {batch} x {length}": Work(batch, 1, length - 1) for batch, length in decodes}
    return named | {f"prefill {new} behind {old}": Work(1, new, old) for new, old in prefills}


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the kind of a model and little else, for the dry mode."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return {**config, **small, "vocab_size": 512}
