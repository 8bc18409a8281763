"""What would come next, says a model at every token of a text: its whole distribution.

The engine tells the most likely tokens only, so this runs the layers that an engine would run, with
weights and KV as it would keep them.  Read next: `kv_choices.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.quality.answers import WINDOW, windows
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide, start
from rtp_jax.runner.kv_tolerance import chunk


class Moved(NamedTuple):
    """How far a model's distribution is from another's."""

    divergence: float  # mean of KL(first | second), nats per token
    share: float  # of the first one's entropy: what text that the first one writes costs more
    agreement: float  # share of tokens after which both find the same one most likely


def distributions(model: str, texts: Sequence[str], **options) -> np.ndarray:
    """Return the log probability [tokens, vocab] of every id after every token of texts."""
    pages = {"max_model_len": WINDOW + 16, "max_num_seqs": 1, "max_num_batched_tokens": 8}
    config = EngineConfig.from_options(deterministic=True, **pages, **options)
    decided = decide(model, config)
    runner = start(decided, config, progress=lambda _: None)
    width = -(-WINDOW // decided.memory.page_size)

    def read(weights, kv, tokens, step):
        model = runner.build(weights)
        hidden, _ = model(tokens, kv, step)
        return jax.nn.log_softmax(model.unembed(hidden, step.num_tokens))

    read, found = jax.jit(read), []
    kv = jax.tree.map(lambda a: jnp.zeros((1 + width, *a.shape[1:]), a.dtype), runner.shapes.kv)
    with jax.default_device(decided.facts.device):
        for window in windows(decided.tokenizer, texts):
            tokens, step = chunk(window, 0, width, WINDOW)
            found.append(np.asarray(read(runner.weights, kv, tokens, step))[: len(window)])
    runner.close()
    return np.concatenate(found)


def moved(first: np.ndarray, second: np.ndarray) -> Moved:
    """Compare the distributions of two models over the same tokens."""
    likely = np.exp(first.astype(np.float64))
    divergence = (likely * (first.astype(np.float64) - second)).sum(-1).mean()
    entropy = -(likely * first).sum(-1).mean()
    agreement = (first.argmax(-1) == second.argmax(-1)).mean()
    return Moved(float(divergence), float(divergence / entropy), float(agreement))
