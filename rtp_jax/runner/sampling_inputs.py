"""What the sampler is told and what it answers: arrays with one entry for each logit row.

Read next: `sampler.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32


class RowOptions(NamedTuple):
    """The options of each row; small, uploaded with every step."""

    temperatures: Float32[Array, " rows"]  # 0: greedy
    top_ks: Int32[Array, " rows"]  # 0: all
    top_ps: Float32[Array, " rows"]  # 1: all
    min_ps: Float32[Array, " rows"]  # 0: all
    presence: Float32[Array, " rows"]
    frequency: Float32[Array, " rows"]
    repetition: Float32[Array, " rows"]  # 1: none
    seeds: UInt32[Array, " rows"]
    positions: Int32[Array, " rows"]  # of the token to be sampled, in its sequence
    slots: Int32[Array, " rows"]  # row of `history`
    prompt_lengths: Int32[Array, " rows"]  # history[slot, :prompt_length] is the prompt
    targets: Int32[Array, " rows"]  # -1: report the sampled token; else report this one
    num_logprobs: Int32[Array, " rows"]  # -1: none wanted

    def penalised(self) -> Bool[Array, " rows"]:
        """Which rows' logits depend on the tokens before them."""
        return (self.presence != 0) | (self.frequency != 0) | (self.repetition != 1)


class WideOptions(NamedTuple):
    """Options with many numbers to a row; uploaded only in steps where some row uses them."""

    masks: UInt32[Array, "rows words"]  # bit i of word w allows id 32 w + i; all ones: all allowed
    use_masks: Bool[Array, ""]
    bias_ids: Int32[Array, "rows biases"]  # -1: unused
    bias_values: Float32[Array, "rows biases"]
    use_bias: Bool[Array, ""]
    logprob_ids: Int32[Array, "rows chosen"]  # 0: unused
    use_logprob_ids: Bool[Array, ""]

    def split(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Separate the arrays with a row for each row from those that are about all rows."""
        named = self._asdict()
        shared = {name: named.pop(name) for name in tuple(named) if name.startswith("use_")}
        return named, shared

    def any_masked(self) -> Bool[Array, ""]:
        """Whether a mask rules out an id of these rows."""
        return self.use_masks & jnp.any(~self.masks != 0)

    def any_biased(self) -> Bool[Array, ""]:
        """Whether these rows have a bias."""
        return self.use_bias & jnp.any(self.bias_ids >= 0)


class Sampled(NamedTuple):
    """What came out of each row.  Logprob arrays are zeros in a step where no row wants them."""

    token_ids: Int32[Array, " rows"]  # sampled, or the target
    logprobs: Float32[Array, " rows"]  # of token_ids, raw
    ranks: Int32[Array, " rows"]  # 1 + number of tokens that are more likely
    top_ids: Int32[Array, "rows most"]  # most likely first, ties by id
    top_logprobs: Float32[Array, "rows most"]
    chosen_logprobs: Float32[Array, "rows chosen"]  # of logprob_ids
    failed: Bool[Array, " rows"]  # NaN or +inf among the logits, or nothing left to choose
