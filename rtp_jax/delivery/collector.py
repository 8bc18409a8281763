"""A reader's side of delivery: deltas of a request become the outputs that it asked for."""

from dataclasses import dataclass, field, replace

from rtp_jax.errors import RtpError
from rtp_jax.outputs import CompletionOutput, Logprob, RequestOutput
from rtp_jax.request import Request
from rtp_jax.sampling_params import OutputKind


@dataclass(slots=True)
class Delta:
    """What is new of one completion, for its reader."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: RtpError | None = None
    num_cached_tokens: int = 0
    cached_tokens: dict[str, int] = field(default_factory=dict)  # by tier
    num_preemptions: int = 0
    admitted_s: float | None = None
    delivered_s: float = 0.0


def joined(earlier: Delta, later: Delta) -> Delta:
    """Put two deltas of one completion together, for a reader that has seen neither."""
    both = replace(
        later, text=earlier.text + later.text, token_ids=earlier.token_ids + later.token_ids
    )
    if earlier.logprobs is not None:
        both.logprobs = earlier.logprobs + (later.logprobs or [])
        both.cumulative_logprob = (earlier.cumulative_logprob or 0.0) + (
            later.cumulative_logprob or 0.0
        )
    if earlier.prompt_logprobs is not None:
        both.prompt_logprobs = earlier.prompt_logprobs + (later.prompt_logprobs or [])
    return both


class Collector:
    """Puts the deltas of a request together, on the reader's side."""

    def __init__(self, request: Request, num_completions: int):
        params = request.params
        self.kind = params.output_kind
        self.output = RequestOutput(
            request.id,
            request.prompt,
            list(request.prompt_token_ids),
            [CompletionOutput(index, "", []) for index in range(num_completions)],
            finished=False,
            prompt_logprobs=[None] if _reports_prompt(request) else None,
        )
        self._arrival_s = request.arrival_s

    def add(self, delta: Delta) -> RequestOutput | None:
        """Take a delta; return what the reader is to see now, in the kind that was asked for."""
        output, completion = self.output, self.output.outputs[delta.index]
        _extend(completion, delta)
        if delta.prompt_logprobs is not None and output.prompt_logprobs is not None:
            output.prompt_logprobs += delta.prompt_logprobs
        if delta.index == 0:
            output.num_cached_tokens = delta.num_cached_tokens
            output.cached_tokens = delta.cached_tokens
        output.num_preemptions = max(output.num_preemptions, delta.num_preemptions)
        output.error = output.error or delta.error
        output.finished = all(part.finished() for part in output.outputs)
        self._time(delta)
        if output.finished and self.kind != OutputKind.DELTA:
            return output
        if self.kind == OutputKind.FINAL_ONLY:
            return None
        if self.kind == OutputKind.DELTA:
            return replace(output, outputs=[_only_new(completion, delta)])
        return replace(output, outputs=[_copy(part) for part in output.outputs])

    def _time(self, delta: Delta) -> None:
        timing = self.output.timing
        since_arrival = delta.delivered_s - self._arrival_s
        if timing.queue_s is None and delta.admitted_s is not None:
            timing = replace(timing, queue_s=delta.admitted_s - self._arrival_s)
        if timing.first_token_s is None and delta.token_ids:
            timing = replace(timing, first_token_s=since_arrival)
        if self.output.finished:
            timing = replace(timing, total_s=since_arrival)
        self.output.timing = timing


def _reports_prompt(request: Request) -> bool:
    """What is resumed behind output tokens has reported its prompt already."""
    resumed = request.resumed
    return request.params.prompt_logprobs is not None and not (resumed and resumed[0])


def _extend(completion: CompletionOutput, delta: Delta) -> None:
    completion.text += delta.text
    completion.token_ids += delta.token_ids
    if delta.logprobs is not None:
        completion.logprobs = (completion.logprobs or []) + delta.logprobs
        completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + (
            delta.cumulative_logprob or 0.0
        )
    completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason


def _only_new(completion: CompletionOutput, delta: Delta) -> CompletionOutput:
    return replace(completion, text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs)


def _copy(completion: CompletionOutput) -> CompletionOutput:
    logprobs = completion.logprobs
    return replace(
        completion,
        token_ids=list(completion.token_ids),
        logprobs=None if logprobs is None else list(logprobs),
    )
