"""How does a request get through although workers die?  Attempt after attempt, until it has ended.

What is lost with a worker is tried elsewhere: a connection that breaks, a worker that drains, one
that stands still.  What a worker says about the request itself is the answer.  Tries are bounded:
as long as tokens come there may be any number, but only a few in a row that bring none.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from grpc import StatusCode, aio

from rtp_jax.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Kind,
    RtpError,
    Unauthenticated,
    Unavailable,
)
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.request import FinishReason
from rtp_jax.router.facts import Ask, Choice
from rtp_jax.serving.client_messages import score_request
from rtp_jax.serving.journey import Journey
from rtp_jax.serving.output_messages import score_of
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.status import detail_of, error_of
from rtp_jax.serving.worker_link import Attempt, WorkerLink
from rtp_jax.serving.workers import Workers
from rtp_jax.wire import generation_pb2 as pb

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between tries that bring nothing
CALL_MARGIN_S = 0.5  # for a worker to say itself that a deadline has passed
BROKEN = {StatusCode.UNAVAILABLE, StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.CANCELLED}
ELSEWHERE = {Kind.UNAVAILABLE, Kind.RESOURCE_EXHAUSTED}  # another worker may well do it


class Lost(Exception):
    """A worker is lost to a request, which may go on elsewhere."""

    def __init__(self, error: RtpError, address: str):
        super().__init__(str(error))
        self.error, self.address = error, address


class Attempts:
    """Carries requests to workers."""

    def __init__(self, workers: Workers, config: RouteConfig):
        self.num_resumed = 0
        self._workers = workers
        self._max_tries = config.max_tries
        self._at: dict[str, WorkerLink] = {}  # where each request is

    async def outputs(
        self, journey: Journey, ask: Callable[[], Ask]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the outputs of a request, from as many workers as it takes.

        Raises:
          RtpError: it was refused before its first token; an error after that is in its end.
        """
        request_id, avoid, tries = journey.request.id, {}, 0
        placing = self._workers.placing
        while not journey.finished:
            had = journey.num_output_tokens
            try:
                if journey.aborted:
                    for output in journey.end(FinishReason.ABORT, None):
                        yield output
                    return
                choice = await placing.place(replace(ask(), avoid=self._avoided(avoid)))
                self._check(choice)
                if journey.num_lost:
                    self.num_resumed += 1
                async with aclosing(self._from_worker(journey, choice)) as outputs:
                    async for output in outputs:
                        yield output
                placing.finished(request_id, journey.num_output_tokens)
            except Lost as lost:
                placing.failed(request_id)
                if journey.finished:  # what broke came behind its end
                    return
                tries = 1 if journey.num_output_tokens > had else tries + 1
                self._note_loss(journey, lost.address, avoid)
                if tries >= self._max_tries and not journey.aborted:
                    for output in self._failed(journey, lost.error):
                        yield output
                    return
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S))
            except RtpError as error:
                placing.finished(request_id, 0)
                for output in self._failed(journey, error):
                    yield output
                return
            except BaseException:  # its client is gone
                placing.finished(request_id, 0)
                raise

    async def score(
        self, ask: Ask, prompt: list[int], continuations: Sequence
    ) -> list[ScoreOutput]:
        """Let one worker after another score continuations, until one does."""
        placing, avoid, tries = self._workers.placing, {}, 0
        while True:
            choice = await placing.place(replace(ask, avoid=self._avoided(avoid)))
            try:
                return await self._score_at(choice, ask, prompt, continuations)
            except Lost as lost:
                tries += 1
                avoid[lost.address] = self._epoch(lost.address)
                if tries >= self._max_tries:
                    raise lost.error from lost
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S))
            finally:
                placing.finished(ask.request_id, 0)

    def abort(self, request_id: str) -> None:
        """End a request that is here, wherever it is."""
        self._workers.placing.give_up(request_id)
        if link := self._at.get(request_id):
            self._workers.spawn(self._workers.abort([request_id], [link]))

    async def _from_worker(
        self, journey: Journey, choice: Choice
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what one worker sends, to the end of the request or of the worker."""
        link = self._workers.links[choice.worker]
        message = journey.message(prefill_at=self._workers.kv_addresses(choice.prefill))
        call = link.generation.GenerateStream(
            message, timeout=_left_s(journey.request.deadline_s), metadata=link.metadata
        )
        request_id, had, started = journey.request.id, journey.num_output_tokens, False
        self._at[request_id] = link
        with link.attempt(call) as attempt:
            try:
                async for frame in call:
                    if frame is None:  # what grpc makes of a message that is none
                        raise Lost(_gone(link, "what it sent was garbled"), link.address)
                    if link.leaving and not journey.aborted and _is_aborted(frame):
                        raise Lost(_gone(link, "it aborted what it could not finish"), link.address)
                    for output in journey.take(frame):
                        yield output
                    if not started and journey.num_output_tokens > had:
                        started = True
                        self._workers.placing.started(request_id)
            except aio.AioRpcError as error:
                if not journey.finished:
                    raise self._judged(error, link, journey) from error
            except asyncio.CancelledError:
                self._raise_lost(attempt, link)
                raise
            finally:
                self._at.pop(request_id, None)
        if not journey.finished:
            raise Lost(_gone(link, "it ended the answer half-way"), link.address)
        link.answered(journey)

    async def _score_at(
        self, choice: Choice, ask: Ask, prompt: list[int], continuations: Sequence
    ) -> list[ScoreOutput]:
        self._check(choice)
        link, timeout_s = self._workers.links[choice.worker], _left_s(ask.deadline_s)
        asked_s = None if timeout_s is None else max(timeout_s - CALL_MARGIN_S, 0.001)
        message = score_request(prompt, continuations, asked_s)
        call = link.generation.Score(message, timeout=timeout_s, metadata=link.metadata)
        with link.attempt(call) as attempt:
            try:
                answer = await call
            except aio.AioRpcError as error:
                raise self._judged(error, link, None) from error
            except asyncio.CancelledError:
                self._raise_lost(attempt, link)
                raise
        return [score_of(score, answer.request_id) for score in answer.scores]

    def _raise_lost(self, attempt: Attempt, link: WorkerLink) -> None:
        """Raise Lost if a call was cancelled because of its worker, and not by its client."""
        task = asyncio.current_task()
        if attempt.lost and not (task is not None and task.cancelling()):
            raise Lost(_gone(link, attempt.lost), link.address) from None

    def _judged(
        self, error: aio.AioRpcError, link: WorkerLink, journey: Journey | None
    ) -> Exception:
        """Tell what is wrong with a request from what is wrong with its worker."""
        ours, detail = error_of(error), detail_of(error)
        if detail is None and error.code() in BROKEN:
            return Lost(_gone(link, error.details() or "the connection broke"), link.address)
        if detail is None and isinstance(ours, DeadlineExceeded):
            return DeadlineExceeded(
                "RTPJ-4001 DEADLINE_EXCEEDED: the deadline passed and the worker did not say so"
                f" within {CALL_MARGIN_S:g} s. Allow more time, or look at `rtp-jax status`."
            )
        if isinstance(ours, Unauthenticated):  # of the router's token, and not of its client's
            return Lost(_gone(link, f"it refuses worker_token_file's token: {ours}"), link.address)
        again = journey is not None and (journey.num_lost or journey.request.resumed)
        if ours.kind in ELSEWHERE or (isinstance(ours, AlreadyExists) and again):
            return Lost(ours, link.address)  # or a call before is gone and its worker not aware
        if isinstance(ours, Cancelled) and link.leaving and not (journey and journey.aborted):
            return Lost(ours, link.address)
        return ours

    def _failed(self, journey: Journey, error: RtpError) -> Sequence[RequestOutput]:
        """End a request with an error: in its last output, or raised if there is none before."""
        if journey.aborted and isinstance(error, Cancelled):
            return list(journey.end(FinishReason.ABORT, None))
        if not journey.started:
            raise error
        early = isinstance(error, DeadlineExceeded | Cancelled)
        return list(journey.end(FinishReason.ABORT if early else FinishReason.ERROR, error))

    def _check(self, choice: Choice) -> None:
        if choice.worker not in self._workers.links:
            error = Unavailable(f"RTPJ-5603 WORKER_LOST: {choice.worker} left. Retry.")
            raise Lost(error, choice.worker)

    def _note_loss(self, journey: Journey, address: str, avoid: dict[str, str]) -> None:
        journey.num_lost += 1
        avoid[address] = self._epoch(address)
        if link := self._workers.links.get(address):
            link.num_lost += 1

    def _epoch(self, address: str) -> str:
        link = self._workers.links.get(address)
        return link.facts.epoch if link is not None and link.facts is not None else ""

    def _avoided(self, avoid: dict[str, str]) -> frozenset[str]:
        """List the workers that failed a request, in this life of theirs."""
        return frozenset(each for each, epoch in avoid.items() if epoch == self._epoch(each))


def _left_s(deadline_s: float | None) -> float | None:
    if deadline_s is None:
        return None
    return max(deadline_s - time.monotonic(), 0.0) + CALL_MARGIN_S


def _is_aborted(frame: pb.GenerateFrame) -> bool:
    return any(part.finish_reason == pb.FINISH_REASON_ABORT for part in frame.completions)


def _gone(link: WorkerLink, reason: str) -> Unavailable:
    return Unavailable(
        f"RTPJ-5603 WORKER_LOST: the worker at {link.address} was lost: {reason}. Retry; `rtp-jax"
        " status` shows which workers are there.",
        retry_after_s=1.0,
    )
