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
        self._fill_tokens(plan, fields)
        row_sources = self._fill_logit_rows(plan, fields)
        wide = self._wide_arrays(row_sources, bucket)
        wants_logprobs = bool((fields["num_logprobs"][: len(row_sources)] >= 0).any())
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

    def _fill_tokens(self, plan: StepPlan, fields: dict[str, np.ndarray]) -> None:
        rows = plan.rows
        slots = np.array([row.slot for row in rows], np.int32)
        starts = np.array([row.start for row in rows], np.int32)
        counts = np.array([row.count for row in rows], np.int32)
        first = np.cumsum(counts, dtype=np.int32) - counts
        total, num_rows = int(counts.sum()), len(rows)
        fields["num_tokens"][0] = total
        fields["query_start"][:num_rows] = first
        fields["query_count"][:num_rows] = counts
        fields["page_table"][:num_rows] = self._page_table[slots]
        sequence_of = np.repeat(np.arange(num_rows, dtype=np.int32), counts)
        fields["sequence_of"][:total] = sequence_of
        fields["positions"][:total] = (starts - first)[sequence_of] + np.arange(total)
        fields["token_slots"][:total] = slots[sequence_of]
        fields["token_slots"][total:] = self.null_slot
        fields["token_ids"][:] = 0
        for row, at in zip(rows, first.tolist(), strict=True):
            ids = row.token_ids
            fields["token_ids"][at : at + row.count] = -1 if ids is None else ids

    def _fill_logit_rows(
        self, plan: StepPlan, fields: dict[str, np.ndarray]
    ) -> list[tuple[StepRow, int]]:
        """Fill the fields of the logit rows; return (plan row, its token) for each of them."""
        sources: list[tuple[StepRow, int]] = []
        targets: list[int] = []
        samples: list[bool] = []
        for row in plan.rows:
            for token in range(row.count - row.num_logit_rows, row.count):
                last = token == row.count - 1
                sources.append((row, token))
                samples.append(row.samples and last)
                targets.append(-1 if row.samples and last else _next_prompt_id(row, token))
        num = len(sources)
        query_start = dict(
            zip((id(row) for row in plan.rows), fields["query_start"].tolist(), strict=False)
        )
        slots = np.array([row.slot for row, _ in sources], np.int32)
        fields["logit_rows"][:num] = [query_start[id(row)] + token for row, token in sources]
        fields["row_slots"][:num] = slots
        fields["row_slots"][num:] = self.null_slot
        fields["row_positions"][:num] = [row.start + token + 1 for row, token in sources]
        fields["commit_slots"][:] = self.null_slot
        fields["commit_slots"][:num] = np.where(samples, slots, self.null_slot)
        fields["targets"][:num] = targets
        for name, _ in ROW_OPTIONS:
            fields[name][:num] = self._options[name][slots]
        fields["num_logprobs"][num:] = -1
        fields["top_ps"][num:] = 1
        fields["repetition"][num:] = 1
        return sources

    def _wide_arrays(self, sources: list[tuple[StepRow, int]], bucket: Bucket) -> WideArrays:
        masked = [(i, row.mask) for i, (row, _) in enumerate(sources) if row.mask is not None]
        wide = [(i, self._wide[row.slot]) for i, (row, _) in enumerate(sources)]
        masks = None
        if masked:
            masks = np.full((bucket.sequences, self._mask_words), 0xFFFFFFFF, np.uint32)
            for i, mask in masked:
                masks[i] = mask
        params = [(i, sequence.request.params) for i, sequence in wide if sequence is not None]
        bias_ids, bias_values = _bias_arrays(params, bucket.sequences)
        return WideArrays(masks, bias_ids, bias_values, _logprob_ids(params, bucket.sequences))


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
