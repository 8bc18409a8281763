"""A plan becomes padded arrays: the host half of a step.

`SlotTable` remembers what the runner knows about each slot, so that a step costs a few NumPy calls
and not a Python loop over tokens.  Read next: `step.py`, the device half.
"""

from typing import NamedTuple

import numpy as np

from rtp_jax.request import Sequence, StepPlan, StepRow
from rtp_jax.runner.buckets import Bucket, smallest
from rtp_jax.runner.packing import layout
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS

ROW_OPTIONS = (
    ("temperatures", np.float32),
    ("top_ks", np.int32),
    ("top_ps", np.float32),
    ("min_ps", np.float32),
    ("presence", np.float32),
    ("frequency", np.float32),
    ("repetition", np.float32),
    ("seeds", np.uint32),
    ("prompt_lengths", np.int32),
    ("num_logprobs", np.int32),
)


class WideArrays(NamedTuple):
    """Options with many numbers per row; None where no row of the step has them."""

    masks: np.ndarray | None = None  # uint32 [rows, ceil(vocab / 32)]
    bias_ids: np.ndarray | None = None  # int32 [rows, MAX_LOGIT_BIAS], -1 where unused
    bias_values: np.ndarray | None = None  # float32
    logprob_ids: np.ndarray | None = None  # int32 [rows, MAX_LOGPROB_TOKEN_IDS]


class Batch(NamedTuple):
    """A plan as host arrays, padded to a bucket."""

    bucket: Bucket
    vector: np.ndarray
    wide: WideArrays
    wants_logprobs: bool


class SlotTable:
    """What each slot holds: its page table and its sampling options."""

    def __init__(self, *, num_slots: int, table_width: int, vocab_size: int):
        self.null_slot = num_slots  # padding writes its history there
        self._page_table = np.zeros((num_slots, table_width), np.int32)
        self._options = {name: np.zeros(num_slots, dtype) for name, dtype in ROW_OPTIONS}
        self._wide: list[Sequence | None] = [None] * num_slots  # who has wide options
        self._mask_words = -(-vocab_size // 32)
        self._table_width = table_width

    def prepare(self, plan: StepPlan, buckets: tuple[Bucket, ...]) -> Batch:
        """Fill the arrays of the smallest bucket that holds the plan."""
        for row in plan.rows:
            if row.admits:
                self._admit(row)
            if row.first_new_page < len(row.pages):
                new = row.pages[row.first_new_page :]
                first = row.first_new_page
                self._page_table[row.slot, first : first + len(new)] = new
        num_rows = max(plan.num_logit_rows, len(plan.rows))
        bucket = smallest(buckets, plan.num_tokens, num_rows)
        vector, fields = layout(bucket, self._table_width).new()
        columns = _columns(plan)
        self._fill_tokens(plan, columns, fields)
        owner = self._fill_logit_rows(plan, columns, fields)
        wide = self._wide_arrays(plan, owner, bucket)
        wants_logprobs = bool((fields["num_logprobs"][: owner.size] >= 0).any())
        return Batch(bucket, vector, wide, wants_logprobs or wide.logprob_ids is not None)

    def _admit(self, row: StepRow) -> None:
        request, params, slot = row.sequence.request, row.sequence.request.params, row.slot
        logprobs = (params.logprobs, params.prompt_logprobs)
        wanted = max(-1 if count is None else count for count in logprobs)
        if params.logprob_token_ids:
            wanted = max(wanted, 0)
        values = (
            0.0 if params.greedy else params.temperature,
            max(params.top_k, 0),
            params.top_p,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
            row.sequence.seed,
            len(request.prompt_token_ids),
            wanted,
        )
        for (name, _), value in zip(ROW_OPTIONS, values, strict=True):
            self._options[name][slot] = min(value, 2**31 - 1) if name == "top_ks" else value
        self._page_table[slot] = 0
        self._wide[slot] = row.sequence if params.logit_bias or params.logprob_token_ids else None

    def _fill_tokens(
        self, plan: StepPlan, columns: "_Columns", fields: dict[str, np.ndarray]
    ) -> None:
        slots, starts, counts, first = columns.slots, columns.starts, columns.counts, columns.first
        total, num_rows = int(counts.sum()), len(plan.rows)
        fields["num_tokens"][0] = total
        fields["query_start"][:num_rows] = first
        fields["query_count"][:num_rows] = counts
        fields["page_table"][:num_rows] = self._page_table[slots]
        sequence_of = np.repeat(np.arange(num_rows, dtype=np.int32), counts)
        fields["sequence_of"][:total] = sequence_of
        fields["positions"][:total] = (starts - first)[sequence_of] + np.arange(total)
        fields["token_slots"][:total] = slots[sequence_of]
        fields["token_slots"][total:] = self.null_slot
        ids = fields["token_ids"]
        ids[:total] = -1  # on the device, unless the plan says otherwise
        for row, at in zip(plan.rows, first.tolist(), strict=True):
            if row.token_ids is not None:
                ids[at : at + row.count] = row.token_ids

    def _fill_logit_rows(
        self, plan: StepPlan, columns: "_Columns", fields: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Fill the fields of the logit rows; return which plan row each of them belongs to."""
        rows, per_row = plan.rows, columns.num_logit_rows
        owner = np.repeat(np.arange(len(rows)), per_row)
        num = owner.size
        nth = np.arange(num) - (np.cumsum(per_row) - per_row)[owner]
        token = (columns.counts - per_row)[owner] + nth  # within the row
        samples = columns.samples[owner] & (token == columns.counts[owner] - 1)
        slots = columns.slots[owner]
        fields["num_logit_rows"][0] = num
        fields["logit_rows"][:num] = columns.first[owner] + token
        fields["row_slots"][:num] = slots
        fields["row_slots"][num:] = self.null_slot
        fields["row_positions"][:num] = columns.starts[owner] + token + 1
        fields["commit_slots"][:] = self.null_slot
        fields["commit_slots"][:num] = np.where(samples, slots, self.null_slot)
        fields["targets"][:num] = -1
        for i in np.flatnonzero(~samples).tolist():
            fields["targets"][i] = _next_prompt_id(rows[owner[i]], int(token[i]))
        for name, _ in ROW_OPTIONS:
            fields[name][:num] = self._options[name][slots]
        fields["num_logprobs"][num:] = -1
        fields["top_ps"][num:] = 1
        fields["repetition"][num:] = 1
        return owner

    def _wide_arrays(self, plan: StepPlan, owner: np.ndarray, bucket: Bucket) -> WideArrays:
        masked = [row.mask is not None for row in plan.rows]
        holders = [self._wide[row.slot] for row in plan.rows]
        if not any(masked) and not any(holder is not None for holder in holders):
            return WideArrays()
        masks = None
        if any(masked):
            masks = np.full((bucket.sequences, self._mask_words), 0xFFFFFFFF, np.uint32)
            for i, at in enumerate(owner.tolist()):
                if masked[at]:
                    masks[i] = plan.rows[at].mask
        params = [
            (i, holder.request.params)
            for i, at in enumerate(owner.tolist())
            if (holder := holders[at]) is not None
        ]
        bias_ids, bias_values = _bias_arrays(params, bucket.sequences)
        return WideArrays(masks, bias_ids, bias_values, _logprob_ids(params, bucket.sequences))


class _Columns(NamedTuple):
    """The plan's rows, one array for each of their numbers."""

    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    first: np.ndarray  # token of the step at which each row begins
    num_logit_rows: np.ndarray
    samples: np.ndarray


def _columns(plan: StepPlan) -> _Columns:
    numbers = [
        (row.slot, row.start, row.count, row.num_logit_rows, row.samples) for row in plan.rows
    ]
    slots, starts, counts, logit_rows, samples = np.array(numbers, np.int32).T
    first = np.cumsum(counts, dtype=np.int32) - counts
    return _Columns(slots, starts, counts, first, logit_rows, samples.astype(bool))


def _next_prompt_id(row: StepRow, token: int) -> int:
    """Token id after position `start + token`: what a prompt-logprob row reports."""
    return row.sequence.request.prompt_token_ids[row.start + token + 1]


def _bias_arrays(params: list, rows: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    biased = [(i, options.logit_bias) for i, options in params if options.logit_bias]
    if not biased:
        return None, None
    ids = np.full((rows, MAX_LOGIT_BIAS), -1, np.int32)
    values = np.zeros((rows, MAX_LOGIT_BIAS), np.float32)
    for i, bias in biased:
        ids[i, : len(bias)] = list(bias.keys())
        values[i, : len(bias)] = list(bias.values())
    return ids, values


def _logprob_ids(params: list, rows: int) -> np.ndarray | None:
    chosen = [(i, p.logprob_token_ids) for i, p in params if p.logprob_token_ids]
    if not chosen:
        return None
    ids = np.zeros((rows, MAX_LOGPROB_TOKEN_IDS), np.int32)
    for i, token_ids in chosen:
        ids[i, : len(token_ids)] = token_ids
    return ids
