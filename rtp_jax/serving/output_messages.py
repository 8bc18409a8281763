"""How do outputs cross the wire, in both directions?

The server turns `RequestOutput` into messages, the client turns them back; vLLM's names stay.
"""

from collections.abc import Iterable, Sequence

from rtp_jax.outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput, Timing
from rtp_jax.wire import generation_pb2 as pb

REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_ABORT,
    "error": pb.FINISH_REASON_ERROR,
}
REASON_OF = {number: name for name, number in REASONS.items()}


def completion_message(completion: CompletionOutput, first_token: int = 0) -> pb.Completion:
    """Spell a completion, or what is new of it after `first_token` tokens."""
    message = pb.Completion(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        first_token=first_token,
        finish_reason=REASONS[completion.finish_reason],
        cumulative_logprob=completion.cumulative_logprob,
    )
    if isinstance(completion.stop_reason, str):
        message.stop_string = completion.stop_reason
    elif completion.stop_reason is not None:
        message.stop_token_id = completion.stop_reason
    if completion.logprobs is not None:
        message.logprobs.extend(logprob_messages(completion.logprobs))
    return message


def completion_of(message: pb.Completion) -> CompletionOutput:
    """Read a completion, or what is new of it."""
    stop = message.WhichOneof("stop_reason")
    return CompletionOutput(
        message.index,
        message.text,
        list(message.token_ids),
        message.cumulative_logprob if message.HasField("cumulative_logprob") else None,
        [position or {} for position in logprobs_of(message.logprobs)] or None,
        REASON_OF.get(message.finish_reason),
        None if stop is None else getattr(message, stop),
    )


def logprob_messages(
    positions: Sequence[dict[int, Logprob] | None],
) -> Iterable[pb.PositionLogprobs]:
    """Spell the log-probabilities of positions; the order within a position stays."""
    for position in positions:
        message = pb.PositionLogprobs()
        for token_id, entry in (position or {}).items():
            message.tokens.add(
                token_id=token_id, logprob=entry.logprob, rank=entry.rank, text=entry.decoded_token
            )
        yield message


def logprobs_of(
    messages: Iterable[pb.PositionLogprobs],
) -> list[dict[int, Logprob] | None]:
    """Read the log-probabilities of positions; an empty one, the first of a prompt, is None."""
    return [
        {
            token.token_id: Logprob(
                token.logprob,
                token.rank if token.HasField("rank") else None,
                token.text if token.HasField("text") else None,
            )
            for token in message.tokens
        }
        or None
        for message in messages
    ]


def usage_message(output: RequestOutput, num_output_tokens: int) -> pb.Usage:
    """Count the tokens of a request."""
    return pb.Usage(
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=num_output_tokens,
        cached_tokens=pb.CachedTokens(**output.cached_tokens),
        num_preemptions=output.num_preemptions,
    )


def timings_message(timing: Timing) -> pb.Timings:
    """Spell when things happened."""
    return pb.Timings(
        queue_s=timing.queue_s, first_token_s=timing.first_token_s, total_s=timing.total_s
    )


def timing_of(message: pb.Timings) -> Timing:
    """Read when things happened."""
    return Timing(
        message.queue_s if message.HasField("queue_s") else None,
        message.first_token_s if message.HasField("first_token_s") else None,
        message.total_s if message.HasField("total_s") else None,
    )


def response_message(
    output: RequestOutput, *, with_prompt_ids: bool, num_resumed: Sequence[int] = ()
) -> pb.GenerateResponse:
    """Spell a finished request; `num_resumed` counts what each completion had before."""
    num_output = sum(len(part.token_ids) for part in output.outputs)
    message = pb.GenerateResponse(
        request_id=output.request_id,
        completions=map(completion_message, output.outputs),
        usage=usage_message(output, num_output + sum(num_resumed)),
        timings=timings_message(output.timing),
        prompt_token_ids=output.prompt_token_ids if with_prompt_ids else (),
    )
    if output.prompt_logprobs is not None:
        message.prompt_logprobs.extend(logprob_messages(output.prompt_logprobs))
    for part, count in zip(message.completions, num_resumed, strict=False):
        part.first_token = count
    return message


def output_of(message: pb.GenerateResponse | pb.GenerateFrame, prompt: object) -> RequestOutput:
    """Read an answer, or a frame, to a prompt."""
    cached = {tier.name: count for tier, count in message.usage.cached_tokens.ListFields() if count}
    ids = list(message.prompt_token_ids)
    if not ids and isinstance(prompt, Sequence) and not isinstance(prompt, str):
        ids = list(prompt)
    return RequestOutput(
        message.request_id,
        prompt if isinstance(prompt, str) else None,
        ids,
        [completion_of(part) for part in message.completions],
        finished=message.finished if isinstance(message, pb.GenerateFrame) else True,
        prompt_logprobs=logprobs_of(message.prompt_logprobs) or None,
        num_cached_tokens=sum(cached.values()),
        cached_tokens=cached,
        num_preemptions=message.usage.num_preemptions,
        timing=timing_of(message.timings),
    )


def score_message(score: ScoreOutput) -> pb.ContinuationScore:
    """Spell the log-probabilities of a continuation."""
    return pb.ContinuationScore(
        token_ids=score.token_ids,
        logprobs=score.logprobs,
        total_logprob=score.total_logprob,
        is_greedy=score.is_greedy,
        num_prompt_tokens=score.num_prompt_tokens,
    )


def score_of(message: pb.ContinuationScore, request_id: str) -> ScoreOutput:
    """Read the log-probabilities of a continuation."""
    return ScoreOutput(
        request_id,
        list(message.token_ids),
        list(message.logprobs),
        message.is_greedy,
        message.num_prompt_tokens,
    )
