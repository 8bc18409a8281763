"""The compiled step: model and sampler in one program, state in, state out.

    tokens -> model over KV pages -> logits of the rows that ask -> sampled tokens

The device remembers each slot's token ids in `history`, so that step n+1 reads the tokens of step
n without the host, and penalties can count what came before.  Read next: `sampler.py`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from rtp_jax.kernels.pages import KVGroup, StepInputs
from rtp_jax.runner.packing import Layout
from rtp_jax.runner.sampler import RowOptions, Sampled, WideOptions

History = Int32[Array, "slots length"]  # token id at each position of each slot
Sampler = Callable[[Array, History, RowOptions, WideOptions], Sampled]  # of float32 logits


class State(NamedTuple):
    """What a step consumes and returns; donated, so it is updated in place."""

    kv: tuple[KVGroup, ...]
    history: History


class WideArguments(NamedTuple):
    """Options with many numbers per row, and whether any row has them."""

    masks: UInt32[Array, "rows words"]
    bias_ids: Int32[Array, "rows biases"]
    bias_values: Float32[Array, "rows biases"]
    logprob_ids: Int32[Array, "rows ids"]
    used: Bool[Array, "3"]  # masks, biases, logprob_ids


class Model(Protocol):
    """What the step needs of a model."""

    def __call__(self, tokens: Array, kv: tuple[KVGroup, ...], step: StepInputs, /) -> tuple:
        """Run the layers over `tokens`: hidden states [tokens, hidden], and the KV groups."""
        ...

    def unembed(self, hidden: Array, rows: Array | None, /) -> Array:
        """Turn hidden states [rows, hidden] into float32 logits [rows, vocab], of leading rows."""
        ...


def run_step(
    weights: list[Array],
    state: State,
    vector: Int32[Array, " size"],
    wide: WideArguments,
    *,
    build: Callable[[list[Array]], Model],
    layout: Layout,
    sampler: Sampler,
) -> tuple[State, Sampled]:
    """Advance every sequence of a step and sample where a logit row asks for it.

    `weights` are bare leaves, because handing over a module costs more than a small step; the
    module exists only while tracing.
    """
    fields = layout.unpack(vector)
    slots, positions = fields["token_slots"], fields["positions"]
    remembered = state.history[slots, positions]
    tokens = jnp.where(fields["token_ids"] < 0, remembered, fields["token_ids"])
    history = state.history.at[slots, positions].set(tokens)
    step = StepInputs(
        positions=positions[None],
        sequence_of=fields["sequence_of"],
        num_tokens=fields["num_tokens"][0],
        page_table=fields["page_table"],
        query_start=fields["query_start"],
        query_count=fields["query_count"],
    )
    model = build(weights)
    hidden, kv = model(tokens, state.kv, step)
    logits = model.unembed(hidden[fields["logit_rows"]], fields["num_logit_rows"][0])
    sampled = sampler(logits, history, _row_options(fields), _wide_options(wide))
    history = history.at[fields["commit_slots"], fields["row_positions"]].set(sampled.token_ids)
    return State(kv, history), sampled


def set_history(history: History, slot: Int32[Array, ""], ids: Int32[Array, " length"]) -> History:
    """Write all known token ids of a slot, for a sequence whose prompt was partly cached."""
    return jax.lax.dynamic_update_slice(history, ids[None], (slot, jnp.int32(0)))


def _row_options(fields: dict[str, Array]) -> RowOptions:
    return RowOptions(
        temperatures=fields["temperatures"],
        top_ks=fields["top_ks"],
        top_ps=fields["top_ps"],
        min_ps=fields["min_ps"],
        presence=fields["presence"],
        frequency=fields["frequency"],
        repetition=fields["repetition"],
        seeds=fields["seeds"],
        positions=fields["row_positions"],
        slots=fields["row_slots"],
        prompt_lengths=fields["prompt_lengths"],
        targets=fields["targets"],
        num_logprobs=fields["num_logprobs"],
    )


def _wide_options(wide: WideArguments) -> WideOptions:
    return WideOptions(
        masks=wide.masks,
        use_masks=wide.used[0],
        bias_ids=wide.bias_ids,
        bias_values=wide.bias_values,
        use_bias=wide.used[1],
        logprob_ids=wide.logprob_ids,
        use_logprob_ids=wide.used[2],
    )


def step_function(build: Callable, layout: Layout, sampler: Sampler) -> Callable:
    """Bind what is fixed for a bucket, leaving a function of arrays."""
    return functools.partial(run_step, build=build, layout=layout, sampler=sampler)
