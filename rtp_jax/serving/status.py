"""Which status answers which error?  One table for gRPC and HTTP; the client reads it backwards.

A status carries `google.rpc.ErrorInfo`, for what may be retried `RetryInfo`, for a field at fault
`BadRequest`, and our `ErrorDetail` with what was generated so far.  docs/grpc.md shows the table.
"""

import math
from collections.abc import Iterable
from typing import cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import RpcError, StatusCode, aio

from rtp_jax import errors
from rtp_jax.errors import Kind, RtpError
from rtp_jax.wire import generation_pb2 as pb

CODE_OF = {
    Kind.INVALID_ARGUMENT: StatusCode.INVALID_ARGUMENT,
    Kind.NOT_FOUND: StatusCode.NOT_FOUND,
    Kind.FAILED_PRECONDITION: StatusCode.FAILED_PRECONDITION,
    Kind.RESOURCE_EXHAUSTED: StatusCode.RESOURCE_EXHAUSTED,
    Kind.DEADLINE_EXCEEDED: StatusCode.DEADLINE_EXCEEDED,
    Kind.CANCELLED: StatusCode.CANCELLED,
    Kind.UNAVAILABLE: StatusCode.UNAVAILABLE,
    Kind.ALREADY_EXISTS: StatusCode.ALREADY_EXISTS,
    Kind.UNAUTHENTICATED: StatusCode.UNAUTHENTICATED,
    Kind.PERMISSION_DENIED: StatusCode.PERMISSION_DENIED,
    Kind.INTERNAL: StatusCode.INTERNAL,
    Kind.UNIMPLEMENTED: StatusCode.UNIMPLEMENTED,
}
# HTTP's code, and what OpenAI calls it; what must not be tried again as it is has no 5xx, because
# clients retry those.
HTTP_OF = {
    Kind.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Kind.NOT_FOUND: (404, "not_found_error"),
    Kind.FAILED_PRECONDITION: (400, "invalid_request_error"),
    Kind.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Kind.DEADLINE_EXCEEDED: (504, "timeout_error"),
    Kind.CANCELLED: (499, "cancelled_error"),
    Kind.UNAVAILABLE: (503, "server_error"),
    Kind.ALREADY_EXISTS: (409, "invalid_request_error"),
    Kind.UNAUTHENTICATED: (401, "authentication_error"),
    Kind.PERMISSION_DENIED: (403, "permission_error"),
    Kind.INTERNAL: (500, "server_error"),
    Kind.UNIMPLEMENTED: (400, "invalid_request_error"),
}
HTTP_CODE_OF_ID = {"RTPJ-5404": 413, "RTPJ-5408": 408}  # where HTTP is more exact
CLASS_OF = {
    kind: {cls.kind: cls for cls in errors.RtpError.__subclasses__()}[kind] for kind in Kind
}
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DOMAIN = "rtp_jax"
RETRY_AFTER_S = 1.0  # when an error says that it may be retried, but not when
MAX_MESSAGE_CHARS = 1000
MAX_PARTIAL_BYTES = 2500  # with all else below the 8 KiB of trailers that most clients take


class EndedEarly(Exception):
    """A request ended by an error after something was generated."""

    def __init__(self, error: RtpError, partial: pb.GenerateResponse):
        super().__init__(str(error))
        self.error, self.partial = error, partial


def trailers(
    error: RtpError, *, request_id: str = "", partial: pb.GenerateResponse | None = None
) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of an error: its details, and when to come back."""
    status = status_pb2.Status(code=code_of(error).value[0], message=message_of(error))
    for detail in _details(error, request_id, partial):
        status.details.add().Pack(detail)
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if request_id:
        metadata.append(("x-request-id", request_id))
    if error.retryable:
        metadata.append((PUSHBACK_KEY, str(round(1000 * retry_delay_s(error)))))
    return tuple(metadata)


def code_of(error: RtpError) -> StatusCode:
    """Return the status code of an error."""
    return CODE_OF[error.kind]


def http_answer(error: RtpError) -> tuple[int, dict[str, str], dict]:
    """Return the HTTP status of an error, its headers, and its body as OpenAI's clients read it."""
    code, kind = HTTP_OF[error.kind]
    headers = {}
    if error.retryable:
        headers["Retry-After"] = str(max(1, math.ceil(retry_delay_s(error))))
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"message": message_of(error), "type": kind, "param": error.field or None}
    return HTTP_CODE_OF_ID.get(error.id, code), headers, {"error": body | {"code": error.id}}


def message_of(error: RtpError) -> str:
    """Return the message of an error, cut to what trailers hold."""
    message = str(error)
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"


def error_of(call: RpcError | aio.AioRpcError) -> RtpError:
    """Rebuild the error that a server sent, or find one for a status that somebody else made."""
    if (detail := detail_of(call)) is not None:
        retry_after_s = detail.retry_after_s if detail.HasField("retry_after_s") else None
        cls = CLASS_OF[Kind(detail.kind)]
        return cls(_words(call), field=detail.field, retry_after_s=retry_after_s)
    words = _words(call) or "no reason given"
    match _code(call):
        case StatusCode.UNAVAILABLE:
            return errors.Unavailable(
                f"RTPJ-5101 SERVER_UNREACHABLE: {words}. Check the address and that a server"
                " listens there, with TLS on both sides or on none."
            )
        case StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(
                f"RTPJ-5102 CALL_TIMED_OUT: {words}. Allow more time with timeout_s."
            )
        case StatusCode.CANCELLED:
            return errors.Unavailable(
                f"RTPJ-5103 CALL_CUT: {words}. The server ended the call without an answer, as one"
                " does that stops. Send the request again."
            )
        case StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhausted(
                f"RTPJ-5104 MESSAGE_TOO_LARGE: {words}. Send less, or raise max_message_bytes."
            )
        case StatusCode.UNIMPLEMENTED:
            return errors.Unimplemented(
                f"RTPJ-5105 METHOD_UNKNOWN: {words}. Check the address, and the server's version."
            )
        case code:
            return errors.Internal(
                f"RTPJ-5106 SERVER_FAULT: {words} (status {code}). The server's log has more."
            )


def detail_of(call: RpcError | aio.AioRpcError) -> pb.ErrorDetail | None:
    """Read our own part of a status, if it has one."""
    for key, value in _trailing(call):
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        detail = pb.ErrorDetail()
        try:
            status = status_pb2.Status.FromString(value)
            found = any(packed.Unpack(detail) for packed in status.details)
        except DecodeError:
            return None
        return detail if found and detail.kind in tuple(Kind) else None
    return None


def _details(error: RtpError, request_id: str, partial: pb.GenerateResponse | None):
    info = {"id": error.id, "retryable": str(error.retryable).lower()}
    if request_id:
        info["request_id"] = request_id
    yield error_details_pb2.ErrorInfo(reason=error.name, domain=DOMAIN, metadata=info)
    if error.retryable:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.CopyFrom(_duration(retry_delay_s(error)))
        yield retry
    if error.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=error.field, description=message_of(error))
        yield bad
    detail = pb.ErrorDetail(
        id=error.id,
        name=error.name,
        kind=error.kind,
        field=error.field,
        retryable=error.retryable,
        request_id=request_id,
    )
    if error.retryable:
        detail.retry_after_s = retry_delay_s(error)
    if partial is not None:
        detail.partial.CopyFrom(partial)
        detail.partial_is_cut = cut(detail.partial)
    yield detail


def cut(partial: pb.GenerateResponse) -> bool:
    """Make a partial answer small enough for a status; tell whether something had to go."""
    if partial.ByteSize() <= MAX_PARTIAL_BYTES:
        return False
    del partial.prompt_token_ids[:], partial.prompt_logprobs[:]
    for completion in partial.completions:
        del completion.token_ids[:], completion.logprobs[:]
    if partial.ByteSize() > MAX_PARTIAL_BYTES:
        room = MAX_PARTIAL_BYTES // (2 * len(partial.completions))
        for completion in partial.completions:
            kept = completion.text.encode()[:room]
            completion.text = kept.decode(errors="ignore")
    if partial.ByteSize() > MAX_PARTIAL_BYTES:
        del partial.completions[:]
    return True


def retry_delay_s(error: RtpError) -> float:
    """Return after how many seconds an error may be tried again."""
    return RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _trailing(call: RpcError | aio.AioRpcError) -> Iterable[tuple[str, object]]:
    metadata = call.trailing_metadata()  # pyright: ignore[reportAttributeAccessIssue]
    return cast("Iterable[tuple[str, object]]", metadata or ())


def _code(call: RpcError | aio.AioRpcError) -> StatusCode:
    return call.code()  # pyright: ignore[reportAttributeAccessIssue]


def _words(call: RpcError | aio.AioRpcError) -> str:
    return call.details() or ""  # pyright: ignore[reportAttributeAccessIssue]
