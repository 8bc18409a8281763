"""From the tokens of a step to what a reader sees: the output queue's station.

One thread detokenizes, so the engine's thread never does; a stop string found there is sent back to
the scheduler before its next commit.  What it hands to a reader is a `Delta`; readers put deltas
together themselves (`collector.py`), so a slow or careless reader costs nobody else anything.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rtp_jax.delivery.collector import Delta
from rtp_jax.errors import Internal, RtpError
from rtp_jax.outputs import Logprob, Timing
from rtp_jax.request import FinishReason, Request, TokenLogprobs, TokenOutput

logger = logging.getLogger(__name__)


class Piece(Protocol):
    """What an assembler makes of new token ids."""

    @property
    def text(self) -> str:
        """New text."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many of the pushed ids stay."""
        ...

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        ...


class Assembler(Protocol):
    """Puts the text of one completion together; see `text/assembler.py`."""

    def push(self, token_ids: list[int]) -> Piece:
        """Take new ids, return new text."""
        ...

    def finish(self) -> Piece:
        """Return the text that was held back."""
        ...


class Reader(Protocol):
    """Where the deltas of a request go; it never blocks."""

    def put(self, delta: Delta) -> None:
        """Take one delta, from the delivery thread."""
        ...

    def flush(self) -> None:
        """End of a step: wake whoever waits, once."""
        ...


@dataclass(slots=True)
class Open:
    """A live request, as delivery sees it."""

    request: Request
    reader: Reader
    assemblers: list[Assembler | None]  # one for each completion; None: ids only
    token_text: Callable[[int], str | None]
    left: int  # completions that have not ended
    ended: set[int] = field(default_factory=set)
    num_sent: dict[int, int] = field(default_factory=dict)  # tokens that each completion has
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How a request ended, for logs and metrics."""

    request: Request
    reason: str
    error: RtpError | None
    num_output_tokens: int
    num_cached_tokens: int
    timing: Timing


class Delivery:
    """One thread between the engine's and the readers'."""

    def __init__(
        self,
        *,
        on_stop: Callable[[str, int, int], None],
        on_finished: Callable[[Finished], None],
    ):
        self._on_stop = on_stop  # request id, index, output tokens that stay
        self._on_finished = on_finished
        self._open: dict[str, Open] = {}
        self._steps: queue.SimpleQueue[list[TokenOutput] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rtp-delivery", daemon=True)
        self._thread.start()

    def open(self, request: Request, live: Open) -> None:
        """Register a request before it reaches the scheduler."""
        self._open[request.id] = live

    def put(self, outputs: list[TokenOutput]) -> None:
        """Take the outputs of a step, from the engine's thread; never blocks."""
        if outputs:
            self._steps.put(outputs)

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """True while the thread delivers."""
        return self._thread.is_alive()

    def end_rest(self, error: RtpError) -> None:
        """End every request that is still open: nobody else will any more."""
        for live in list(self._open.values()):
            self.put(
                [_end_of(live.request, index, error) for index in range(live.request.params.n)]
            )

    def close(self) -> None:
        """Deliver what is queued, then end the thread; may be called again."""
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (outputs := self._steps.get()) is not None:
            readers: dict[int, Reader] = {}
            for output in outputs:
                try:  # this thread serves everybody: it outlives any reader, log or record
                    self._hand_over(output, readers)
                except Exception:
                    logger.exception("delivery of request %s failed", output.request_id)
            for reader in readers.values():
                try:
                    reader.flush()
                except Exception:
                    logger.exception("a reader failed")

    def _hand_over(self, output: TokenOutput, readers: dict[int, Reader]) -> None:
        live = self._open.get(output.request_id)
        if live is None or output.index in live.ended:
            return  # surplus of a step that ran ahead of a stop string
        if output.request is not None and output.request is not live.request:
            return  # surplus of an earlier request with the same id
        delta = self._delta(live, output)
        try:
            self._count(live, delta)
        finally:  # the reader gets it whatever logs and records may do
            readers[id(live.reader)] = live.reader
            live.reader.put(delta)

    def _delta(self, live: Open, output: TokenOutput) -> Delta:
        """Make the delta of one completion; a fault in its text ends this completion alone."""
        delta = Delta(
            output.request_id,
            output.index,
            "",
            output.token_ids,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            error=output.error,
            num_cached_tokens=output.num_cached_tokens,
            cached_tokens=output.cached_tokens,
            num_preemptions=output.num_preemptions,
            admitted_s=output.admitted_s,
            delivered_s=time.monotonic(),
        )
        with request_wall(output.request_id, "detokenizer", lambda error: self._fail(delta, error)):
            self._add_text(live, output, delta)
            self._add_logprobs(live, output, delta)
        return delta

    def _add_text(self, live: Open, output: TokenOutput, delta: Delta) -> None:
        assembler = live.assemblers[output.index]
        if assembler is None:
            return
        piece = assembler.push(ids := _visible(live.request, output))
        delta.text = piece.text
        if piece.stopped is None and delta.finish_reason is not None:
            last = assembler.finish()
            delta.text += last.text
            if last.stopped is not None and delta.finish_reason == FinishReason.LENGTH:
                delta.finish_reason, delta.stop_reason = FinishReason.STOP, last.stopped
        elif piece.stopped is not None:
            delta.token_ids = ids[: piece.num_tokens]
            delta.finish_reason, delta.stop_reason = FinishReason.STOP, piece.stopped
            sent = live.num_sent.get(output.index, 0) + piece.num_tokens
            self._on_stop(output.request_id, output.index, sent)

    def _add_logprobs(self, live: Open, output: TokenOutput, delta: Delta) -> None:
        if output.logprobs is not None:
            kept = output.logprobs[: len(delta.token_ids)]
            delta.logprobs = [_readable(entry, live.token_text) for entry in kept]
            delta.cumulative_logprob = sum(entry.logprob for entry in kept)
        if output.prompt_logprobs is not None and output.index == 0:  # the others' are the same
            delta.prompt_logprobs = [
                _readable(entry, live.token_text) for entry in output.prompt_logprobs
            ]

    def _fail(self, delta: Delta, error: RtpError) -> None:
        delta.finish_reason, delta.error = FinishReason.ERROR, error
        self._on_stop(delta.request_id, delta.index, 0)

    def _count(self, live: Open, delta: Delta) -> None:
        sent = live.num_sent.get(delta.index, 0) + len(delta.token_ids)
        live.num_sent[delta.index] = sent
        if delta.token_ids and live.first_token_s is None:
            live.first_token_s = delta.delivered_s
        if delta.finish_reason is None:
            return
        live.ended.add(delta.index)
        live.left -= 1
        if live.left == 0:
            del self._open[delta.request_id]
            self._on_finished(_summary(live, delta))


@contextmanager
def request_wall(
    request_id: str, point: str, on_error: Callable[[RtpError], None]
) -> Iterator[None]:
    """Keep what fails for one request from touching any other; the engine goes on."""
    try:
        yield
    except RtpError as error:
        on_error(error)
    except Exception as error:
        logger.exception("request %s failed in its %s", request_id, point)
        on_error(
            Internal(
                f"RTPJ-4101 REQUEST_FAULT: request {request_id} failed in its {point}"
                f" ({type(error).__name__}); other requests go on. The log has the trace."
            )
        )


def _end_of(request: Request, index: int, error: RtpError) -> TokenOutput:
    return TokenOutput(
        request.id, index, [], finish_reason=FinishReason.ABORT, error=error, request=request
    )


def reraise(error: RtpError) -> None:
    """Let the caller see what the wall made of a fault."""
    raise error


def _visible(request: Request, output: TokenOutput) -> list[int]:
    """Ids that have text: an eos or stop token stays in the ids and is not part of the text."""
    ids = output.token_ids
    stopped = output.finish_reason == FinishReason.STOP and bool(ids)
    hide = stopped and not request.params.include_stop_str_in_output
    return ids[:-1] if hide and ids[-1] in request.stop_token_ids else ids


def _readable(entry: TokenLogprobs, token_text: Callable[[int], str | None]) -> dict[int, Logprob]:
    """One position's logprobs by token id, the token itself first."""
    table = {entry.token_id: Logprob(entry.logprob, entry.rank, token_text(entry.token_id))}
    for token_id, logprob, rank in entry.others:
        table.setdefault(token_id, Logprob(logprob, rank, token_text(token_id)))
    return table


def _summary(live: Open, delta: Delta) -> Finished:
    arrival = live.request.arrival_s
    first, admitted = live.first_token_s, delta.admitted_s
    timing = Timing(
        None if admitted is None else admitted - arrival,
        None if first is None else first - arrival,
        delta.delivered_s - arrival,
    )
    return Finished(
        live.request,
        str(delta.finish_reason),
        delta.error,
        sum(live.num_sent.values()) - sum(map(len, live.request.resumed)),
        delta.num_cached_tokens,
        timing,
    )
