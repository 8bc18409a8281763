"""How far do logits move when layers keep KV in fewer bits?  Measured on text.

A calibration step runs the layers over tokens, the KV of each layer rounded as a scheme would store
it.  Which layer is rounded how is an argument of the program, so one program reads every choice,
and the one that rounds nothing, whose hidden states are kept:

    divergence = mean over tokens of KL(plain | rounded), in nats

What is rounded nowhere is read by the same program, so its divergence is exactly 0.

Read next: `engine/kv_choice.py`, which decides what is measured.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.pages import ROUNDINGS, KVGroup, StepInputs
from rtp_jax.parallel.devices import Device
from rtp_jax.runner.step import Model

CHUNK, PAGE_SIZE = 64, 16  # tokens


class KVTolerance:
    """A model, the texts that it reads, and the programs that compare two ways to keep their KV.

    Besides the model, the device holds the hidden states of all tokens, in the model's dtype.
    """

    def __init__(
        self,
        *,
        weights: list[jax.Array],
        build: Callable[[list[jax.Array]], Model],
        page_shape: tuple[int, ...],  # [layers, 2, kv_heads, page_size, head_dim], of any page size
        texts: Sequence[Sequence[int]],
        device: Device,
    ):
        assert texts, "nothing to read"
        assert all(texts), "an empty text"
        layers, halves, kv_heads, _, head_dim = page_shape
        self.num_layers, self._width = layers, -(-max(map(len, texts)) // PAGE_SIZE)
        self._pages = (1 + self._width, layers, halves, kv_heads, PAGE_SIZE, head_dim)
        self._weights, self._texts, self._device = weights, texts, device
        self._advance = jax.jit(_reader(build), donate_argnums=1)
        self._compare = jax.jit(_comparison(build))
        self._plain: list[jax.Array] = []

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self._texts))

    def divergence(self, schemes: Sequence[str]) -> float:
        """Measure one choice: for each layer `plain`, `int8` or `fp8`."""
        with jax.default_device(self._device):
            if not self._plain:
                plain = ["plain"] * self.num_layers
                self._plain = [hidden for hidden, _ in self._read(plain)]
            totals = [
                self._compare(self._weights, plain, rounded, count)
                for plain, (rounded, count) in zip(self._plain, self._read(schemes), strict=True)
            ]
        return sum(map(float, totals)) / self.num_tokens

    def _read(self, schemes: Sequence[str]) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Read all texts; yield the hidden states of each chunk, and how many are of tokens."""
        codes = jnp.asarray([ROUNDINGS.index(name) for name in schemes], jnp.int32)
        for text in self._texts:
            kv = KVGroup(jnp.zeros(self._pages, jnp.float32), None, jnp.copy(codes))
            for start in range(0, len(text), CHUNK):
                tokens, step = chunk(text, start, self._width)
                kv, hidden = self._advance(self._weights, kv, tokens, step)
                yield hidden, step.num_tokens


def chunk(
    text: Sequence[int], start: int, width: int, size: int = CHUNK
) -> tuple[np.ndarray, StepInputs]:
    """Prepare the step of some tokens of a text, whose pages are 1, 2, and so on to `width`."""
    ids = np.asarray(text[start : start + size], np.int32)
    tokens, positions = np.zeros((2, size), np.int32)
    tokens[: len(ids)], positions[: len(ids)] = ids, start + np.arange(len(ids))
    step = StepInputs(
        positions=jnp.asarray(positions[None]),
        sequence_of=jnp.zeros(size, jnp.int32),
        num_tokens=jnp.int32(len(ids)),
        page_table=1 + jnp.arange(width, dtype=jnp.int32)[None],
        query_start=jnp.zeros(1, jnp.int32),
        query_count=jnp.array([len(ids)], jnp.int32),
    )
    return tokens, step


def _reader(build: Callable[[list[jax.Array]], Model]) -> Callable:
    def advance(weights, kv: KVGroup, tokens, step: StepInputs):
        hidden, (kv,) = build(weights)(tokens, (kv,), step)
        return kv, hidden

    return advance


def _comparison(build: Callable[[list[jax.Array]], Model]) -> Callable:
    def compare(weights, plain, rounded, num_tokens):
        model = build(weights)
        first, second = (
            jax.nn.log_softmax(model.unembed(hidden, num_tokens)) for hidden in (plain, rounded)
        )
        each = (jnp.exp(first) * (first - second)).sum(-1)
        return jnp.where(jnp.arange(len(each)) < num_tokens, each, 0).sum()

    return compare
