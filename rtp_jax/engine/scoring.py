"""Scoring: the log-probability of given continuations, read from prompt logprobs."""

from collections.abc import Sequence
from dataclasses import dataclass

from rtp_jax.engine.requests import Prompt, RequestBuilder, parse_prompt
from rtp_jax.errors import Cancelled, InvalidArgument
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.request import Request
from rtp_jax.sampling_params import OutputKind, SamplingParams

MAX_CONTINUATIONS = 1024


@dataclass(frozen=True, slots=True)
class Scoring:
    """One request for each continuation, and where each continuation begins."""

    requests: list[Request]
    num_prompt_tokens: int

    def read(self, outputs: Sequence[RequestOutput]) -> list[ScoreOutput]:
        """Take the continuation's part of each request's prompt logprobs."""
        return [self._read_one(output) for output in outputs]

    def _read_one(self, output: RequestOutput) -> ScoreOutput:
        if output.error is not None:
            raise output.error
        if output.outputs[0].finish_reason == "abort":
            raise Cancelled(f"RTPJ-4002 ABORTED: request {output.request_id} was aborted.")
        ids = output.prompt_token_ids[self.num_prompt_tokens :]
        assert output.prompt_logprobs is not None
        positions = output.prompt_logprobs[self.num_prompt_tokens :]
        entries = [table[i] for table, i in zip(positions, ids, strict=True) if table is not None]
        return ScoreOutput(
            output.request_id,
            ids,
            [entry.logprob for entry in entries],
            all(entry.rank == 1 for entry in entries),
            self.num_prompt_tokens,
        )


def score_requests(
    builder: RequestBuilder,
    prompt: Prompt,
    continuations: Sequence,
    deadline_s: float | None,
) -> Scoring:
    """Make a request for each continuation of a prompt; both may be text or token ids.

    Text is tokenized in two parts, so that a score is about exactly the continuation's tokens.
    """
    if isinstance(continuations, str) or not isinstance(continuations, Sequence):
        raise _bad("a list of str or of token ids", type(continuations).__name__)
    if len(continuations) > MAX_CONTINUATIONS:
        raise _bad(f"at most {MAX_CONTINUATIONS} continuations", f"{len(continuations)}")
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=OutputKind.FINAL_ONLY,
    )
    first = _ids(builder, prompt, add_special_tokens=True)
    if not first:
        raise _bad("preceded by a prompt of at least one token", "an empty prompt")
    requests = []
    for continuation in continuations:
        more = _ids(builder, parse_prompt(continuation), add_special_tokens=False)
        if not more:
            raise _bad("continuations of at least one token each", "an empty one")
        whole = Prompt(None, (*first, *more), prompt.cache_salt)
        requests.append(builder.build(whole, params, deadline_s=deadline_s))
    return Scoring(requests, len(first))


def _ids(builder: RequestBuilder, prompt: Prompt, *, add_special_tokens: bool) -> tuple[int, ...]:
    if prompt.token_ids is not None:
        return prompt.token_ids
    return tuple(builder.encode(prompt.text or "", add_special_tokens=add_special_tokens))


def _bad(allowed: str, given: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-1003 OPTION_INVALID: continuations must be {allowed}; given {given}.",
        field="continuations",
    )
