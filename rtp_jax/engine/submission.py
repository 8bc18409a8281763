"""The way in: refuse what cannot be admitted, hand the rest to the loop.  Read next: `bulk.py`."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rtp_jax.delivery.delivery import Delivery, Open, Reader, request_wall, reraise
from rtp_jax.engine.assemblers import assemblers_of
from rtp_jax.engine.early_aborts import EarlyAborts
from rtp_jax.engine.loop import Abort, EngineLoop
from rtp_jax.engine.requests import RequestBuilder
from rtp_jax.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    ResourceExhausted,
    RtpError,
    Unavailable,
)
from rtp_jax.request import Request, TokenOutput
from rtp_jax.text.assembler import TextAssembler
from rtp_jax.text.tokenizer import Tokenizer

RETRY_AFTER_S = 1.0


class Submission:
    """Who may enter; thread-safe."""

    def __init__(
        self,
        *,
        builder: RequestBuilder,
        loop: EngineLoop,
        delivery: Delivery,
        tokenizer: Tokenizer | None,
        max_open: int,
        record_refusal: Callable[[], None],
    ):
        self.builder = builder
        self.draining = False
        self._loop = loop
        self._delivery = delivery
        self._tokenizer = tokenizer
        self.max_open = max_open  # sequences that may run or wait
        self._lock = threading.Lock()
        self._open: dict[str, _Entry] = {}  # by request id
        self._aborted = EarlyAborts()
        self._record_refusal = record_refusal

    def submit(
        self,
        request: Request,
        reader: Reader,
        assemblers: list[TextAssembler | None] | None = None,
    ) -> None:
        """Admit a request and send it to the loop, or raise.

        `assemblers` were made by `assemblers` before, where the caller must not be held up.
        """
        entry = _Entry(request)
        try:
            with self._lock:
                self._check_open(request)
                self._open[request.id] = entry
        except RtpError:
            self._record_refusal()
            raise
        try:
            self._send(entry, self._opened(request, reader, assemblers))
        except BaseException:
            self.left(request)
            raise

    def stop(self) -> None:
        """Refuse new requests from now on."""
        with self._lock:
            self.draining = True

    def left(self, request: Request) -> None:
        """Note that a request has ended."""
        with self._lock:
            entry = self._open.get(request.id)
            if entry is not None and entry.request is request:
                del self._open[request.id]

    def abort(self, request_id: str) -> None:
        """Give a live request up, or remember the id for a while."""
        with self._lock:
            if (entry := self._open.get(request_id)) is not None:
                self._abort(entry)
            else:
                self._aborted.add(request_id)

    def give_up(self, request: Request) -> None:
        """Abort this very request, if it is still live; its reader is gone."""
        with self._lock:
            entry = self._open.get(request.id)
            if entry is not None and entry.request is request:
                self._abort(entry)

    def _abort(self, entry: "_Entry") -> None:
        entry.aborted = True
        if entry.sent:
            self._loop.send(Abort(entry.request.id))

    def assemblers(self, request: Request) -> list[TextAssembler | None]:
        """Make what puts the texts of a request together; resuming a long one takes a while."""
        with request_wall(request.id, "text assembler", reraise):
            return assemblers_of(request, self._tokenizer)

    def _opened(
        self, request: Request, reader: Reader, assemblers: list[TextAssembler | None] | None
    ) -> Open:
        return Open(
            request,
            reader,
            list(assemblers or self.assemblers(request)),
            self._token_text,
            request.params.n,
            num_sent=dict(enumerate(map(len, request.resumed))),
        )

    def _send(self, entry: "_Entry", live: Open) -> None:
        """Open the way back, then send the request on its way."""
        with self._lock:
            if entry.aborted:
                raise _aborted(entry.request)
            self._delivery.open(entry.request, live)
            self._delivery.put(_ends(entry.request))
            if len(entry.request.ended) < entry.request.params.n:
                self._loop.send(entry.request)
            entry.sent = True
        if not self._loop.alive:  # it may have ended after it was looked at
            self._delivery.end_rest(_dead())

    def deadline(self, timeout_s: float | None) -> float | None:
        """Turn seconds from now into an absolute deadline."""
        if timeout_s is None:
            return None
        number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not number or not 0 < timeout_s < float("inf"):
            raise InvalidArgument(
                f"RTPJ-1003 OPTION_INVALID: timeout_s={timeout_s!r} is not allowed; it must be a"
                " number of seconds > 0, or None.",
                field="timeout_s",
            )
        return time.monotonic() + timeout_s

    def _check_open(self, request: Request) -> None:
        """Refuse what may not enter now; the caller holds the lock."""
        if self.draining:
            raise Unavailable(
                "RTPJ-4003 DRAINING: this engine finishes what it has and takes nothing new."
                " Try another worker.",
                retry_after_s=RETRY_AFTER_S,
            )
        if not self._loop.alive or not self._delivery.alive:
            raise _dead()
        if self._aborted.take(request.id):
            raise _aborted(request)
        if request.id in self._open:
            raise AlreadyExists(
                f"RTPJ-4005 DUPLICATE_ID: a live request has the id {request.id}. Choose"
                " another request_id, or wait until that one has ended.",
                field="request_id",
            )
        num_open = sum(entry.request.params.n for entry in self._open.values())
        if num_open + request.params.n > self.max_open:
            raise ResourceExhausted(
                f"RTPJ-2201 QUEUE_FULL: {num_open} sequences run or wait and request"
                f" {request.id} brings {request.params.n}, {self.max_open} are allowed"
                " (max_num_seqs + max_waiting). Retry later, or raise max_waiting.",
                retry_after_s=RETRY_AFTER_S,
            )

    def _token_text(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token_id)


@dataclass(slots=True)
class _Entry:
    """A request that has entered."""

    request: Request
    sent: bool = False  # to the loop
    aborted: bool = False


def _ends(request: Request) -> list[TokenOutput]:
    """Say again how the completions ended that were whole before."""
    return [
        TokenOutput(
            request.id,
            end.index,
            [],
            finish_reason=end.reason,
            stop_reason=end.stop_reason,
            request=request,
        )
        for end in request.ended
    ]


def _aborted(request: Request) -> Cancelled:
    return Cancelled(f"RTPJ-4002 ABORTED: request {request.id} was aborted.")


def _dead() -> Unavailable:
    return Unavailable(
        "RTPJ-4004 ENGINE_DEAD: the engine's loop has ended. Restart the engine.",
        retry_after_s=RETRY_AFTER_S,
    )
