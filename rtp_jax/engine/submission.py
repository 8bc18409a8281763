"""The way in: refuse what cannot be admitted, hand the rest to the loop.  Read next: `bulk.py`."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rtp_jax.delivery.delivery import Delivery, Open, Reader, request_wall, reraise
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
from rtp_jax.request import Request
from rtp_jax.text.assembler import TextAssembler
from rtp_jax.text.tokenizer import Tokenizer

REMEMBER_ABORTS_S = 30.0  # an abort may overtake its request
MAX_REMEMBERED_ABORTS = 10_000
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
        self._aborted: dict[str, float] = {}  # id that is not here yet to when to forget it
        self._record_refusal = record_refusal

    def submit(self, request: Request, reader: Reader) -> None:
        """Admit a request and send it to the loop, or raise."""
        entry = _Entry(request)
        try:
            with self._lock:
                self._check_open(request)
                self._open[request.id] = entry
        except RtpError:
            self._record_refusal()
            raise
        try:
            self._send(entry, self._opened(request, reader))
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
        now = time.monotonic()
        with self._lock:
            if (entry := self._open.get(request_id)) is not None:
                self._abort(entry)
                return
            while self._aborted and next(iter(self._aborted.values())) < now:  # oldest first
                del self._aborted[next(iter(self._aborted))]
            if len(self._aborted) < MAX_REMEMBERED_ABORTS:
                self._aborted.pop(request_id, None)
                self._aborted[request_id] = now + REMEMBER_ABORTS_S

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

    def _opened(self, request: Request, reader: Reader) -> Open:
        with request_wall(request.id, "text assembler", reraise):
            return Open(
                request,
                reader,
                [self._assembler(request) for _ in range(request.params.n)],
                self._token_text,
                request.params.n,
            )

    def _send(self, entry: "_Entry", live: Open) -> None:
        """Open the way back, then send the request on its way."""
        with self._lock:
            if entry.aborted:
                raise _aborted(entry.request)
            self._delivery.open(entry.request, live)
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
        if self._aborted.pop(request.id, 0.0) > time.monotonic():
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

    def _assembler(self, request: Request) -> TextAssembler | None:
        params = request.params
        if self._tokenizer is None or not params.detokenize:
            return None
        return TextAssembler(
            self._tokenizer,
            request.prompt_token_ids,
            stops=params.stops,
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )

    def _token_text(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token_id)


@dataclass(slots=True)
class _Entry:
    """A request that has entered."""

    request: Request
    sent: bool = False  # to the loop
    aborted: bool = False


def _aborted(request: Request) -> Cancelled:
    return Cancelled(f"RTPJ-4002 ABORTED: request {request.id} was aborted.")


def _dead() -> Unavailable:
    return Unavailable(
        "RTPJ-4004 ENGINE_DEAD: the engine's loop has ended. Restart the engine.",
        retry_after_s=RETRY_AFTER_S,
    )
