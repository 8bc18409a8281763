"""How far do logits move when layers keep KV in fewer bits?  Measured on text.

A calibration step runs the model twice over the same tokens: with KV as it is computed, and with
the KV of each layer rounded as a scheme would store it.  Which layer is rounded how is an argument
of the program, so one program measures every choice:

    divergence = mean over tokens of KL(plain | rounded), in nats

Read next: `engine/kv_choice.py`, which decides what is measured.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.pages import ROUNDINGS, KVGroup, StepInputs
from rtp_jax.runner.device import Device
from rtp_jax.runner.step import Model

CHUNK, PAGE_SIZE = 64, 16  # tokens


class KVTolerance:
    """A model, the texts that it reads, and the program that compares two ways to keep their KV."""

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
        self._width = -(-max(map(len, texts)) // PAGE_SIZE)
        self._pages = (1 + self._width, layers, halves, kv_heads, PAGE_SIZE, head_dim)
        self._weights, self._texts, self._device = weights, texts, device
        self._compare = jax.jit(_comparison(build), donate_argnums=(1, 2))

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self._texts))

    def divergence(self, schemes: Sequence[str]) -> float:
        """Measure one choice: for each layer `plain`, `int8` or `fp8`."""
        codes = jnp.asarray([ROUNDINGS.index(name) for name in schemes], jnp.int32)
        totals = []
        with jax.default_device(self._device):
            for text in self._texts:
                plain = KVGroup(jnp.zeros(self._pages, jnp.float32), None)
                rounded = KVGroup(jnp.zeros(self._pages, jnp.float32), None, jnp.copy(codes))
                for start in range(0, len(text), CHUNK):
                    tokens, step = self._chunk(text, start)
                    plain, rounded, total = self._compare(
                        self._weights, plain, rounded, tokens, step
                    )
                    totals.append(total)
        return sum(map(float, totals)) / self.num_tokens

    def _chunk(self, text: Sequence[int], start: int) -> tuple[np.ndarray, StepInputs]:
        """Prepare the step of some tokens of a text, whose pages are 1, 2, and so on."""
        ids = np.asarray(text[start : start + CHUNK], np.int32)
        tokens, positions = np.zeros((2, CHUNK), np.int32)
        tokens[: len(ids)], positions[: len(ids)] = ids, start + np.arange(len(ids))
        step = StepInputs(
            positions=jnp.asarray(positions[None]),
            sequence_of=jnp.zeros(CHUNK, jnp.int32),
            num_tokens=jnp.int32(len(ids)),
            page_table=1 + jnp.arange(self._width, dtype=jnp.int32)[None],
            query_start=jnp.zeros(1, jnp.int32),
            query_count=jnp.array([len(ids)], jnp.int32),
        )
        return tokens, step


def _comparison(build: Callable[[list[jax.Array]], Model]) -> Callable:
    def compare(weights, plain: KVGroup, rounded: KVGroup, tokens, step: StepInputs):
        model, scores = build(weights), []
        groups = []
        for group in (plain, rounded):
            hidden, (group,) = model(tokens, (group,), step)
            scores.append(jax.nn.log_softmax(model.unembed(hidden, step.num_tokens)))
            groups.append(group)
        each = (jnp.exp(scores[0]) * (scores[0] - scores[1])).sum(-1)
        return *groups, jnp.where(jnp.arange(CHUNK) < step.num_tokens, each, 0).sum()

    return compare
