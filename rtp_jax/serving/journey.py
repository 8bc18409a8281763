"""One request on its way through workers: what its client has, and what the next worker is asked.

    tokens so far ----> message to a worker ----> frames ----> outputs, each token once
         ^------------------------------------------'

A worker that is lost leaves tokens behind; the next one is asked to go on after them.  What comes
is held against what is there: a frame that would leave a gap, or repeat a token, ends the request.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from rtp_jax.delivery.collector import Collector, Delta
from rtp_jax.errors import Internal, RtpError
from rtp_jax.outputs import RequestOutput
from rtp_jax.request import Request, Reuse
from rtp_jax.serving.output_messages import completion_of, logprobs_of
from rtp_jax.serving.sampling_messages import message_of_params
from rtp_jax.wire import generation_pb2 as pb


class Journey:
    """A request, the tokens that its client has, and how it ends."""

    def __init__(self, request: Request):
        self.request = request
        self.collector = Collector(request, request.params.n)
        self.token_ids = [list(each) for each in request.resumed] or [
            [] for _ in range(request.params.n)
        ]
        self.aborted = False
        self.started = False  # it has got a token here
        self.num_lost = 0  # workers
        self._ended: set[int] = set()
        self._cached: dict[str, int] | None = None  # by tier, at the first worker
        self._num_preemptions = 0
        self._num_prompt_logprobs = 0  # that this worker has sent
        self._admitted_s: float | None = None
        self._sent_s = 0.0

    @property
    def finished(self) -> bool:
        """True when every completion has ended."""
        return len(self._ended) == self.request.params.n

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(map(len, self.token_ids))

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that its first worker found in its prefix cache."""
        return sum((self._cached or {}).values())

    @property
    def tokens_left(self) -> int:
        """Tokens that may still come, of all completions."""
        return self.request.params.n * self.request.max_tokens - self.num_output_tokens

    def message(self, *, prefill_at: Sequence[str] = ()) -> pb.GenerateRequest:
        """Ask the next worker for what is missing."""
        request, now_s = self.request, time.monotonic()
        self._sent_s, self._num_prompt_logprobs = now_s, 0
        message = pb.GenerateRequest(
            request_id=request.id,
            token_ids=pb.TokenIds(ids=request.prompt_token_ids),
            sampling=message_of_params(request.params),
            prefill_at=request.prefill_at or prefill_at,
        )
        message.sampling.seed = request.seed
        message.sampling.ClearField("truncate_prompt_tokens")  # done before pages were looked up
        if request.priority:
            message.priority = request.priority
        if request.cache_salt:
            message.cache_salt = request.cache_salt
        if request.deadline_s is not None:
            message.timeout_s = max(request.deadline_s - now_s, 0.001)
        if request.reuse != Reuse():
            message.reuse.CopyFrom(pb.Reuse(**dataclasses.asdict(request.reuse)))
        if self.request.resumed or any(self.token_ids):
            for ids in self.token_ids:
                message.resume.output.add(ids=ids)
        return message

    def take(self, frame: pb.GenerateFrame) -> Iterator[RequestOutput]:
        """Take what a worker sent; yield what the client is to see."""
        self._count(frame)
        prompt_logprobs = self._new_prompt_logprobs(frame)
        for part in frame.completions:
            if part.index in self._ended:
                continue
            delta = self._delta(part)
            delta.prompt_logprobs, prompt_logprobs = prompt_logprobs, None
            if (output := self._add(delta)) is not None:
                yield output

    def end(self, reason: str, error: RtpError | None) -> Iterator[RequestOutput]:
        """End the completions that have not ended."""
        for index in range(self.request.params.n):
            if index not in self._ended:
                delta = self._empty(index)
                delta.finish_reason, delta.error = reason, error
                if (output := self._add(delta)) is not None:
                    yield output

    def _add(self, delta: Delta) -> RequestOutput | None:
        self.token_ids[delta.index] += delta.token_ids
        self.started |= bool(delta.token_ids)
        if delta.finish_reason is not None:
            self._ended.add(delta.index)
        return self.collector.add(delta)

    def _delta(self, part: pb.Completion) -> Delta:
        have = len(self.token_ids[part.index])
        if part.first_token != have:
            raise Internal(
                f"RTPJ-5602 STREAM_OUT_OF_STEP: a worker sent token {part.first_token} of"
                f" completion {part.index} of request {self.request.id}, whose client has {have}."
                " Please report it, with the versions of worker and router."
            )
        completion, delta = completion_of(part), self._empty(part.index)
        delta.text, delta.token_ids = completion.text, completion.token_ids
        delta.finish_reason, delta.stop_reason = completion.finish_reason, completion.stop_reason
        if self.request.params.logprobs is not None or self.request.params.logprob_token_ids:
            delta.logprobs = completion.logprobs or []
            delta.cumulative_logprob = sum(
                table[token_id].logprob
                for table, token_id in zip(delta.logprobs, delta.token_ids, strict=True)
            )
        return delta

    def _empty(self, index: int) -> Delta:
        return Delta(
            self.request.id,
            index,
            "",
            [],
            num_cached_tokens=self.num_cached_tokens,
            cached_tokens=self._cached or {},
            num_preemptions=self._num_preemptions,
            admitted_s=self._admitted_s,
            delivered_s=time.monotonic(),
        )

    def _count(self, frame: pb.GenerateFrame) -> None:
        if frame.HasField("usage"):
            if self._cached is None:
                tiers = frame.usage.cached_tokens.ListFields()
                self._cached = {tier.name: count for tier, count in tiers}
            self._num_preemptions = max(self._num_preemptions, frame.usage.num_preemptions)
        if self._admitted_s is None and frame.timings.HasField("queue_s"):
            self._admitted_s = self._sent_s + frame.timings.queue_s

    def _new_prompt_logprobs(self, frame: pb.GenerateFrame):
        """Return the positions that no worker has sent before, or None."""
        if not frame.prompt_logprobs:
            return None
        first = self._num_prompt_logprobs
        self._num_prompt_logprobs += len(frame.prompt_logprobs)
        have = len(self.collector.output.prompt_logprobs or ())
        return logprobs_of(frame.prompt_logprobs)[max(have - first, 0) :] or None
