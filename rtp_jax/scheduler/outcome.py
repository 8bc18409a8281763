"""What did a step find out about a sequence: is it over, and which logprobs did it ask for?"""

from rtp_jax.errors import Internal
from rtp_jax.request import (
    FinishReason,
    Sequence,
    StepPlan,
    StepResult,
    StepRow,
    TokenLogprobs,
    TokenOutput,
)
from rtp_jax.scheduler.tracked import Tracked


def finish_reason(tracked: Tracked, token_id: int) -> FinishReason | None:
    """Say whether a sequence ends with the token that it has just got."""
    sequence, num_output = tracked.sequence, len(tracked.sequence.output_ids)
    request = sequence.request
    if token_id in request.stop_token_ids and num_output >= request.params.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if num_output >= tracked.max_output else None


def stop_reason(sequence: Sequence, token_id: int) -> int | None:
    """Return the stop token to report; an eos is not reported."""
    return None if token_id in sequence.request.eos_token_ids else token_id


def output_of(
    sequence: Sequence, token_ids: list[int], reason: FinishReason | None = None
) -> TokenOutput:
    """Make what delivery gets for a sequence."""
    return TokenOutput(
        sequence.request.id,
        sequence.index,
        token_ids,
        finish_reason=reason,
        num_cached_tokens=sequence.num_cached,
        cached_tokens=within(sequence.cached_tokens, sequence.num_prompt),
        num_preemptions=sequence.num_preemptions,
        admitted_s=sequence.admitted_s,
        request=sequence.request,
    )


def within(cached_tokens: dict[str, int], num_prompt: int) -> dict[str, int]:
    """Count by tier what was found of a prompt; output that was found behind it is none of it."""
    if sum(cached_tokens.values()) <= num_prompt:
        return cached_tokens
    left, counts = num_prompt, {}
    for tier, count in cached_tokens.items():  # in the order of the pages
        counts[tier] = min(count, left)
        left -= counts[tier]
    return {tier: count for tier, count in counts.items() if count}


def token_logprobs(sequence: Sequence, result: StepResult, at: int) -> list[TokenLogprobs] | None:
    """Read the logprobs of the token that logit row `at` sampled, if they were asked for."""
    params = sequence.request.params
    if params.logprobs is None and not params.logprob_token_ids:
        return None
    chosen = tuple(params.logprob_token_ids or ())
    return [_logprobs(result, at, int(result.token_ids[at]), params.logprobs or 0, chosen)]


def prompt_logprobs(row: StepRow, result: StepResult, at: int) -> list[TokenLogprobs] | None:
    """Read what the logit rows from `at` on say about the prompt tokens after their own."""
    params, prompt = row.sequence.request.params, row.sequence.request.prompt_token_ids
    num_reports = row.num_logit_rows - row.samples
    if params.prompt_logprobs is None or num_reports == 0:
        return None
    first = row.start + row.count - row.num_logit_rows + 1  # position of the first token reported
    return [
        _logprobs(result, at + i, prompt[first + i], params.prompt_logprobs, ())
        for i in range(num_reports)
    ]


def not_a_number(sequence: Sequence, plan: StepPlan) -> Internal:
    """Make the error of a sequence whose logits are NaN."""
    return Internal(
        f"RTPJ-4103 LOGITS_NAN: the logits of request {sequence.request.id}, completion"
        f" {sequence.index}, were NaN in step {plan.number}, after {sequence.num_prompt} prompt and"
        f" {len(sequence.output_ids)} output tokens; other requests go on. Try dtype=float32; if"
        " that does not help, the weights may be damaged."
    )


def _logprobs(
    result: StepResult, at: int, token_id: int, num_top: int, chosen: tuple[int, ...]
) -> TokenLogprobs:
    assert result.logprobs is not None, "the step was asked for logprobs"
    assert result.ranks is not None
    others: list[tuple[int, float, int | None]] = []
    if num_top:
        assert result.top_ids is not None
        assert result.top_logprobs is not None
        ids, values = result.top_ids[at, :num_top].tolist(), result.top_logprobs[at, :num_top]
        others += zip(ids, values.tolist(), range(1, num_top + 1), strict=True)
    if chosen:
        assert result.chosen_logprobs is not None
        values = result.chosen_logprobs[at, : len(chosen)].tolist()
        others += [(id_, value, None) for id_, value in zip(chosen, values, strict=True)]
    return TokenLogprobs(token_id, float(result.logprobs[at]), int(result.ranks[at]), tuple(others))
