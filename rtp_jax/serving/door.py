"""What happens around every call?  Bytes become a message, errors a status, and it is counted.

    bytes -> parse -> a method of `GenerationService` -> message -> bytes

Messages are read here and not by grpc, because grpc answers bytes that are no message with
INTERNAL, and because unknown fields must be refused.  Read next: `generation_service.py`.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from rtp_jax.errors import Internal, RtpError
from rtp_jax.metrics import Metrics
from rtp_jax.serving.checks import checked_request_id, parse
from rtp_jax.serving.status import EndedEarly, code_of, message_of, trailers
from rtp_jax.wire import generation_pb2 as pb

logger = logging.getLogger("rtp_jax.requests")
SERVICE = pb.DESCRIPTOR.services_by_name["Generation"]
QUIET = {"Tokenize", "Detokenize", "Abort", "GetModelInfo", "GetServerInfo", "GetLoads", "/health"}
# W3C Trace Context, section 3.2; what is malformed is not passed on
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as a method sees it."""

    request_id: str  # the caller's x-request-id, or one made here
    deadline_s: float  # time.monotonic(); the caller's, or the server's longest


class Service(Protocol):
    """Has an async method for each unary one of the descriptor, an async iterator for streams."""


class Door:
    """The methods of a service, as grpc wants them."""

    def __init__(
        self,
        service: Service,
        *,
        metrics: Metrics,
        max_request_s: float,
        described: ServiceDescriptor = SERVICE,
    ):
        self._service, self._described = service, described
        self._metrics = metrics
        self._max_request_s = max_request_s

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server registers."""
        methods = {method.name: self._method(method) for method in self._described.methods}
        return grpc.method_handlers_generic_handler(self._described.full_name, methods)

    def _method(self, method: MethodDescriptor) -> grpc.RpcMethodHandler:
        asked = GetMessageClass(method.input_type)
        answer = getattr(self._service, method.name)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method.name, asked, answer), response_serializer=_spelled
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method.name, asked, answer), response_serializer=_spelled
        )

    def _unary(self, name: str, asked: type[Message], answer: "Unary"):
        async def call(data: bytes, context: aio.ServicerContext) -> Message:
            async with _Wall(name, context, self._metrics) as wall:
                request = parse(asked, data)
                return await answer(request, await wall.open(self._max_request_s))

        return call

    def _stream(self, name: str, asked: type[Message], answer: "Streaming"):
        async def call(data: bytes, context: aio.ServicerContext) -> None:
            async with _Wall(name, context, self._metrics) as wall:
                request = parse(asked, data)
                async for frame in answer(request, await wall.open(self._max_request_s)):
                    await context.write(frame)

        return call


class Unary(Protocol):
    """A method that answers once."""

    def __call__(self, request: Any, call: Call) -> Awaitable[Message]:
        """Answer."""
        ...


class Streaming(Protocol):
    """A method that answers piece by piece."""

    def __call__(self, request: Any, call: Call) -> AsyncIterator[Message | bytes]:
        """Answer; bytes are a message that is spelled already."""
        ...


def _spelled(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class _Wall:
    """Stands around one call: whatever leaves it is an answer or a status, and is counted."""

    def __init__(self, name: str, context: aio.ServicerContext, metrics: Metrics):
        self._name, self._context, self._metrics = name, context, metrics
        self._request_id = ""

    async def open(self, max_request_s: float) -> Call:
        """Read what came beside the message, and send back what says which call this is."""
        metadata = dict(self._context.invocation_metadata() or ())
        given = metadata.get("x-request-id", "")
        if given:
            self._request_id = checked_request_id(str(given), "x-request-id")
        else:
            self._request_id = uuid.uuid4().hex
        echo = [("x-request-id", self._request_id)]
        trace = str(metadata.get("traceparent", ""))
        if TRACEPARENT.fullmatch(trace):
            echo.append(("traceparent", trace))
        await self._context.send_initial_metadata(tuple(echo))
        left_s = self._context.time_remaining()
        left_s = max_request_s if left_s is None else min(left_s, max_request_s)
        return Call(self._request_id, time.monotonic() + left_s)

    async def __aenter__(self) -> "_Wall":
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._count("OK")
        elif isinstance(error, EndedEarly):
            await self._abort(error.error, error.partial)  # the engine has logged it
        elif isinstance(error, RtpError):
            log_refusal(self._name, self._request_id, error)
            await self._abort(error)
        elif isinstance(error, asyncio.CancelledError):
            left_s = self._context.time_remaining()
            late = left_s is not None and left_s <= 0
            self._count("DEADLINE_EXCEEDED" if late else "CANCELLED")
        elif isinstance(error, Exception):
            logger.exception("%s failed", self._name, exc_info=error)
            await self._abort(fault(self._name))

    async def _abort(self, error: RtpError, partial: pb.GenerateResponse | None = None) -> None:
        self._count(code_of(error).name)
        details = trailers(error, request_id=self._request_id, partial=partial)
        await self._context.abort(code_of(error), message_of(error), details)

    def _count(self, code: str) -> None:
        self._metrics.on_rpc(self._name, code)


def log_refusal(name: str, request_id: str, error: RtpError) -> None:
    """Say that a request was refused; the message may quote it, so only its name is shown."""
    level = logging.DEBUG if name in QUIET else logging.WARNING
    fields = {"request_id": request_id, "method": name, "error": error.id}
    words = "request %s refused: %s %s"
    logger.log(level, words, request_id or "-", error.id, error.name, extra=fields)


def fault(name: str) -> Internal:
    """Build the error for what we did wrong ourselves."""
    return Internal(
        f"RTPJ-5001 METHOD_FAULT: {name} failed for a reason of ours; other calls go on. The"
        " server's log has the trace: please report it."
    )
