"""How logits become tokens: vLLM's order, on the device, inside the compiled step.

    raw logprobs -> mask -> bias -> penalties -> temperature -> min-p, top-k, top-p -> draw

A step pays only for what its rows ask for: everything beyond "the largest logit" stands behind a
`lax.cond`.  A row never pays with its result: whatever its neighbours cause to run leaves its
logits as they are, and the arithmetic after it is the same.

Read next: `sampling_inputs.py` (the arrays), `truncation.py` (which tokens are kept), `draw.py`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from rtp_jax.runner.draw import BLOCK, draw, most_likely, uniforms
from rtp_jax.runner.sampling_inputs import RowOptions, Sampled, WideOptions
from rtp_jax.runner.truncation import thresholds
from rtp_jax.sampling_params import MAX_LOGPROBS

LOGITS_AT_A_TIME = 1 << 14  # on a CPU, and at least one row; measured by bench/sampler.py

Rows = Float32[Array, " rows"]
Ids = Int32[Array, " rows"]
Logits = Float32[Array, "rows vocab"]
History = Int32[Array, "slots length"]


def sample(
    logits: Logits,
    history: History,
    options: RowOptions,
    wide: WideOptions,
    *,
    vocab_size: int,
    native: str | None = None,
) -> Sampled:
    """Choose a token for each row, and report it or the row's target.

    Args:
      logits: of the unembedding, whose vocabulary may be padded beyond `vocab_size`.
      history: token ids by slot and position, valid before each row's position.
      options: what each row asks for.
      wide: what few rows ask for.
      vocab_size: how many ids are tokens; the rest is padding and never chosen.
      native: level of the C++ kernels that may be called; None: none.
    """

    shaped = wide.any_masked() | wide.any_biased() | jnp.any(options.penalised())
    greedy = jnp.all((options.temperatures <= 0) & (options.num_logprobs < 0))

    def plain() -> Sampled:
        best, largest = most_likely(logits, vocab_size, native)
        return _without_logprobs(_reported(best, largest, options), largest, wide)

    def full() -> Sampled:
        some = functools.partial(_sample, vocab_size=vocab_size, native=native)
        return jax.lax.platform_dependent(
            logits, history, options, wide, cpu=_few_at_a_time(some), default=some
        )

    return jax.lax.cond(greedy & ~shaped, plain, full)


def _few_at_a_time(some: Callable[..., Sampled]) -> Callable[..., Sampled]:
    """Sample a few rows after another, and so pay for each what it asks for itself.

    Every pass over a row then reads cache instead of memory, which on a CPU is five times as fast
    as passes over all rows.  A GPU does all rows in one go.
    """

    def sample_all(
        logits: Logits, history: History, options: RowOptions, wide: WideOptions
    ) -> Sampled:
        rows, vocab = logits.shape
        few = math.gcd(rows, 1 << (max(LOGITS_AT_A_TIME // vocab, 1).bit_length() - 1))
        by_row, shared = wide.split()

        def turn(part: tuple) -> Sampled:
            logits, options, by_row = part
            return some(logits, history, options, WideOptions(**by_row, **shared))

        parts = jax.tree.map(lambda x: x.reshape(-1, few, *x.shape[1:]), (logits, options, by_row))
        sampled = jax.lax.map(turn, parts)
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), sampled)

    return sample_all


def _sample(
    logits: Logits,
    history: History,
    options: RowOptions,
    wide: WideOptions,
    *,
    vocab_size: int,
    native: str | None,
) -> Sampled:
    logits = _tokens_only(logits, vocab_size)
    shaped = _if(wide.any_masked(), lambda x: _masked(x, wide), logits)
    shaped = _if(wide.any_biased(), lambda x: _biased(x, wide), shaped)
    penalised = jnp.any(options.penalised())
    shaped = _if(penalised, lambda x: _penalised(x, history, options), shaped)
    best, largest = most_likely(shaped, vocab_size, native)
    random = (options.temperatures > 0) & jnp.isfinite(largest)

    def drawn() -> Ids:
        threshold = thresholds(shaped, largest, options)
        numbers = uniforms(options.seeds, options.positions)
        ids = draw(shaped, largest, threshold, options.temperatures, numbers)
        return jnp.where(random, ids, best)

    chosen = jax.lax.cond(jnp.any(random), drawn, lambda: best)
    reported = _reported(chosen, largest, options)
    return jax.lax.cond(
        jnp.any(options.num_logprobs >= 0),
        lambda: _with_logprobs(logits, reported, largest, wide),
        lambda: _without_logprobs(reported, largest, wide),
    )


def _if(condition: Bool[Array, ""], shape: Callable[[Logits], Logits], logits: Logits) -> Logits:
    return jax.lax.cond(condition, shape, lambda x: x, logits)


def _reported(chosen: Ids, largest: Rows, options: RowOptions) -> Ids:
    """Report targets where there are some, and token 0 where the choice has failed."""
    chosen = jnp.where(jnp.isfinite(largest), chosen, 0)
    return jnp.where(options.targets < 0, chosen, options.targets)


def _tokens_only(logits: Logits, vocab_size: int) -> Logits:
    """Rule out padding; a width of whole blocks spares everything after it from copies."""
    if missing := -logits.shape[1] % BLOCK:
        logits = jnp.pad(logits, ((0, 0), (0, missing)))
    if vocab_size == logits.shape[1]:
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


def _with_logprobs(logits: Logits, reported: Ids, largest: Rows, wide: WideOptions) -> Sampled:
    """Report raw logprobs of the token, of the most likely ones and of those asked for by id."""
    norm = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    own = jnp.take_along_axis(logits, reported[:, None], axis=1)
    more_likely = jnp.sum(jnp.where(logits > own, 1.0, 0.0), axis=1)  # exact below 2^24
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
        ranks=1 + more_likely.astype(jnp.int32),
        top_ids=jnp.pad(ids.astype(jnp.int32), pad),
        top_logprobs=jnp.pad(top - norm, pad, constant_values=-jnp.inf),
        chosen_logprobs=chosen,
        failed=~jnp.isfinite(largest),
    )


def _without_logprobs(reported: Ids, largest: Rows, wide: WideOptions) -> Sampled:
    rows = reported.shape[0]
    return Sampled(
        token_ids=reported,
        logprobs=jnp.zeros(rows, jnp.float32),
        ranks=jnp.zeros(rows, jnp.int32),
        top_ids=jnp.zeros((rows, MAX_LOGPROBS), jnp.int32),
        top_logprobs=jnp.zeros((rows, MAX_LOGPROBS), jnp.float32),
        chosen_logprobs=jnp.zeros(wide.logprob_ids.shape, jnp.float32),
        failed=~jnp.isfinite(largest),
    )
