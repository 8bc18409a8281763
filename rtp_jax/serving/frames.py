"""What is in a frame of a stream?  What is new; and in the first and the last one, the counts."""

from collections.abc import Sequence
from dataclasses import replace

from rtp_jax.outputs import RequestOutput
from rtp_jax.serving.output_messages import (
    completion_message,
    logprob_messages,
    response_message,
    timings_message,
    usage_message,
)
from rtp_jax.wire import generation_pb2 as pb


class Frames:
    """Numbers the frames of one stream, and the tokens of each completion."""

    def __init__(self, *, with_prompt_ids: bool, num_resumed: Sequence[int] = ()):
        """Start; `num_resumed` counts the tokens that each completion had before."""
        self._with_prompt_ids = with_prompt_ids
        self._next = 0
        self._num_tokens_of = dict(enumerate(num_resumed))
        self._num_prompt_logprobs = 0

    def frame(self, output: RequestOutput) -> pb.GenerateFrame:
        """Spell what is new."""
        frame = pb.GenerateFrame(
            request_id=output.request_id, sequence=self._next, finished=output.finished
        )
        for part in output.outputs:
            first = self._num_tokens_of.get(part.index, 0)
            frame.completions.append(completion_message(part, first))
            self._num_tokens_of[part.index] = first + len(part.token_ids)
        if output.prompt_logprobs is not None:
            news = output.prompt_logprobs[self._num_prompt_logprobs :]
            frame.prompt_logprobs.extend(logprob_messages(news))
            self._num_prompt_logprobs += len(news)
        if self._next == 0 and self._with_prompt_ids:
            frame.prompt_token_ids.extend(output.prompt_token_ids)
        if self._next == 0 or output.finished:
            frame.usage.CopyFrom(usage_message(output, sum(self._num_tokens_of.values())))
            frame.timings.CopyFrom(timings_message(output.timing))
        self._next += 1
        return frame

    def summary(self, output: RequestOutput) -> pb.GenerateResponse:
        """Spell the end of a stream that an error ended: what is new, and the counts."""
        answer = response_message(replace(output, prompt_logprobs=None), with_prompt_ids=False)
        num_new = sum(len(part.token_ids) for part in output.outputs)
        answer.usage.output_tokens = num_new + sum(self._num_tokens_of.values())
        for part in answer.completions:
            part.first_token = self._num_tokens_of.get(part.index, 0)
        return answer
