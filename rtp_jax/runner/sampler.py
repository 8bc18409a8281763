"""How logits become tokens: vLLM's order, on the device, inside the compiled step.

    raw logprobs -> mask -> bias -> penalties -> temperature -> min-p, top-k, top-p -> draw

A step pays only for what its rows ask for: everything beyond "the largest logit" stands behind a
`lax.cond` on the whole batch.  A row never pays with its result: whatever branch its neighbours
cause to run leaves its logits as they are, and the arithmetic after it is the same.

Read next: `sampling_inputs.py` (the arrays), `truncation.py` (which tokens are kept), `draw.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from rtp_jax.runner.draw import draw, most_likely, uniforms
from rtp_jax.runner.sampling_inputs import RowOptions, Sampled, WideOptions
from rtp_jax.runner.truncation import thresholds
from rtp_jax.sampling_params import MAX_LOGPROBS

Rows = Float32[Array, " rows"]
Ids = Int32[Array, " rows"]
Logits = Float32[Array, "rows vocab"]
History = Int32[Array, "slots length"]


def sample(
    logits: Logits, history: History, options: RowOptions, wide: WideOptions, *, vocab_size: int
) -> Sampled:
    """Choose a token for each row, and report it or the row's target.

    Args:
      logits: of the unembedding, whose vocabulary may be padded beyond `vocab_size`.
      history: token ids by slot and position, valid before each row's position.
      options: what each row asks for.
      wide: what few rows ask for.
      vocab_size: how many ids are tokens; the rest is padding and never chosen.
    """
    logits = _without_padding(logits, vocab_size)
    # A cond that passed unchanged logits on would copy them, hence two ways to the same choice.
    shapes = wide.use_masks | wide.use_bias | jnp.any(options.penalised())
    chosen, failed = jax.lax.cond(
        shapes,
        lambda: _choose(_shaped(logits, history, options, wide), options),
        lambda: _choose(logits, options),
    )
    reported = jnp.where(options.targets < 0, chosen, options.targets)
    return _report(logits, reported, failed, options, wide)


def _choose(logits: Logits, options: RowOptions) -> tuple[Ids, Bool[Array, " rows"]]:
    """Take the most likely token of greedy rows, and draw one for the others."""
    best, largest = most_likely(logits)

    def drawn() -> Ids:
        threshold = thresholds(logits, largest, options)
        numbers = uniforms(options.seeds, options.positions)
        ids = draw(logits, largest, threshold, options.temperatures, numbers)
        return jnp.where(options.temperatures > 0, ids, best)

    chosen = jax.lax.cond(jnp.any(options.temperatures > 0), drawn, lambda: best)
    failed = ~jnp.isfinite(largest)
    return jnp.where(failed, 0, chosen), failed


def _shaped(logits: Logits, history: History, options: RowOptions, wide: WideOptions) -> Logits:
    """Apply masks, bias and penalties, in this order; rows without them stay as they are."""
    logits = jax.lax.cond(wide.use_masks, lambda x: _masked(x, wide), lambda x: x, logits)
    logits = jax.lax.cond(wide.use_bias, lambda x: _biased(x, wide), lambda x: x, logits)
    return jax.lax.cond(
        jnp.any(options.penalised()),
        lambda x: _penalised(x, history, options),
        lambda x: x,
        logits,
    )


def _without_padding(logits: Logits, vocab_size: int) -> Logits:
    if logits.shape[1] == vocab_size:
        return logits
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) < vocab_size
    return jnp.where(token, logits, -jnp.inf)


def _masked(logits: Logits, wide: WideOptions) -> Logits:
    """Rule out ids whose bit is not set; NaN stays, so that a failed row is seen to fail."""
    rows, vocab = logits.shape
    bits = (wide.masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    allowed = bits.reshape(rows, -1)[:, :vocab] != 0
    missing = vocab - allowed.shape[1]
    allowed = jnp.pad(allowed, ((0, 0), (0, max(missing, 0))))
    return jnp.where(allowed | jnp.isnan(logits), logits, -jnp.inf)


def _biased(logits: Logits, wide: WideOptions) -> Logits:
    """Add each row's biases; ids that are no tokens are dropped."""
    rows, vocab = logits.shape
    ids = jnp.where(wide.bias_ids < 0, vocab, wide.bias_ids)
    return logits.at[jnp.arange(rows)[:, None], ids].add(wide.bias_values, mode="drop")


def _penalised(logits: Logits, history: History, options: RowOptions) -> Logits:
    """Apply repetition (prompt and output), frequency and presence (output) penalties."""
    rows, vocab = logits.shape
    ids = history[options.slots]
    position = jnp.arange(history.shape[1])
    known = (position < options.positions[:, None]) & options.penalised()[:, None]
    output = known & (position >= options.prompt_lengths[:, None])
    row = jnp.arange(rows)[:, None]
    # One array for both: twice the count in the output, plus one if the token is in the prompt.
    marks = jnp.zeros((rows, vocab), jnp.int32)
    marks = marks.at[row, jnp.where(output, ids, vocab)].add(2, mode="drop")
    marks = marks.at[row, jnp.where(known & ~output, ids, vocab)].max(1, mode="drop")
    count = (marks >> 1).astype(jnp.float32)
    repetition = jnp.where(marks > 0, options.repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - options.frequency[:, None] * count
    return logits - options.presence[:, None] * (count > 0)


def _report(
    logits: Logits,
    reported: Ids,
    failed: Bool[Array, " rows"],
    options: RowOptions,
    wide: WideOptions,
) -> Sampled:
    """Add raw logprobs where some row wants them."""

    def logprobs() -> Sampled:
        norm = jax.nn.logsumexp(logits, axis=1, keepdims=True)
        own = jnp.take_along_axis(logits, reported[:, None], axis=1)
        ranks = 1 + jnp.sum(jnp.where(logits > own, 1.0, 0.0), axis=1).astype(jnp.int32)
        most = min(MAX_LOGPROBS, logits.shape[1])
        top, ids = jax.lax.top_k(logits, most)
        chosen = jax.lax.cond(
            wide.use_logprob_ids,
            lambda: jnp.take_along_axis(logits, wide.logprob_ids, axis=1) - norm,
            lambda: jnp.zeros(wide.logprob_ids.shape, jnp.float32),
        )
        pad = ((0, 0), (0, MAX_LOGPROBS - most))
        return Sampled(
            token_ids=reported,
            logprobs=(own - norm)[:, 0],
            ranks=ranks,
            top_ids=jnp.pad(ids.astype(jnp.int32), pad),
            top_logprobs=jnp.pad(top - norm, pad, constant_values=-jnp.inf),
            chosen_logprobs=chosen,
            failed=failed,
        )

    def nothing() -> Sampled:
        rows = reported.shape[0]
        return Sampled(
            token_ids=reported,
            logprobs=jnp.zeros(rows, jnp.float32),
            ranks=jnp.zeros(rows, jnp.int32),
            top_ids=jnp.zeros((rows, MAX_LOGPROBS), jnp.int32),
            top_logprobs=jnp.zeros((rows, MAX_LOGPROBS), jnp.float32),
            chosen_logprobs=jnp.zeros(wide.logprob_ids.shape, jnp.float32),
            failed=failed,
        )

    return jax.lax.cond(jnp.any(options.num_logprobs >= 0), logprobs, nothing)
