"""Options for the sampler's tests: every row greedy and plain unless said otherwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.runner.sampler import sample
from rtp_jax.runner.sampling_inputs import RowOptions, Sampled, WideOptions
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS

NEUTRAL = {
    "temperatures": (0.0, np.float32),
    "top_ks": (0, np.int32),
    "top_ps": (1.0, np.float32),
    "min_ps": (0.0, np.float32),
    "presence": (0.0, np.float32),
    "frequency": (0.0, np.float32),
    "repetition": (1.0, np.float32),
    "seeds": (0, np.uint32),
    "positions": (0, np.int32),
    "slots": (0, np.int32),
    "prompt_lengths": (0, np.int32),
    "targets": (-1, np.int32),
    "num_logprobs": (-1, np.int32),
}


def row_options(rows: int, **given) -> RowOptions:
    """Build options of `rows` rows; a scalar holds for all of them."""
    unknown = set(given) - set(NEUTRAL)
    assert not unknown, unknown
    return RowOptions(
        **{
            name: jnp.asarray(np.broadcast_to(np.asarray(given.get(name, value), dtype), (rows,)))
            for name, (value, dtype) in NEUTRAL.items()
        }
    )


def wide_options(rows: int, vocab: int, *, allowed=None, biases=None, logprob_ids=None):
    """Build wide options from {row: ids}, {row: {id: bias}} and {row: ids}."""
    masks = np.full((rows, -(-vocab // 32)), 0xFFFFFFFF, np.uint32)
    for row, ids in (allowed or {}).items():
        masks[row] = 0
        for id_ in ids:
            masks[row, id_ // 32] |= np.uint32(1 << (id_ % 32))
    bias_ids = np.full((rows, MAX_LOGIT_BIAS), -1, np.int32)
    bias_values = np.zeros((rows, MAX_LOGIT_BIAS), np.float32)
    for row, bias in (biases or {}).items():
        bias_ids[row, : len(bias)] = list(bias)
        bias_values[row, : len(bias)] = list(bias.values())
    chosen = np.zeros((rows, MAX_LOGPROB_TOKEN_IDS), np.int32)
    for row, ids in (logprob_ids or {}).items():
        chosen[row, : len(ids)] = ids
    return WideOptions(
        masks=jnp.asarray(masks),
        use_masks=jnp.asarray(allowed is not None),
        bias_ids=jnp.asarray(bias_ids),
        bias_values=jnp.asarray(bias_values),
        use_bias=jnp.asarray(biases is not None),
        logprob_ids=jnp.asarray(chosen),
        use_logprob_ids=jnp.asarray(logprob_ids is not None),
    )


@functools.cache
def compiled(vocab_size: int):
    """The sampler under jit, as the step runs it."""
    return jax.jit(functools.partial(sample, vocab_size=vocab_size))


def run(logits, *, history=None, wide=None, vocab_size=None, **options) -> Sampled:
    """Sample from logits [rows, vocab] with the options given; results as NumPy arrays."""
    logits = np.asarray(logits, np.float32)
    rows, vocab = logits.shape
    slots = np.zeros((16, 64), np.int32)  # one shape, so that less is compiled
    if history is not None:
        slots[: len(history), : len(history[0])] = history
    wide = wide_options(rows, vocab_size or vocab) if wide is None else wide
    sampled = compiled(vocab_size or vocab)(
        jnp.asarray(logits), jnp.asarray(slots), row_options(rows, **options), wide
    )
    return jax.tree.map(np.asarray, sampled)


def random_logits(rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    """Normal logits in float32."""
    return (np.random.default_rng(seed).normal(size=(rows, vocab)) * scale).astype(np.float32)
