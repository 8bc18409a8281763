"""Who may call?  Whoever sends one of the tokens of a file, on every method but health.

Clients send `authorization: Bearer TOKEN`.  Tokens are compared in constant time, and a file that
names none is an error, never an open door.
"""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
from grpc import aio

from rtp_jax.errors import InvalidArgument, Unauthenticated
from rtp_jax.serving.status import code_of, message_of, trailers

logger = logging.getLogger("rtp_jax.requests")
HEALTH = "/grpc.health.v1.Health/"
SCHEME = "bearer "
MAX_FILE_BYTES = 1 << 20
MIN_TOKEN_CHARS = 8
HANDLER_OF_SHAPE = {  # (streams requests, streams responses)
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def read_tokens(path: str) -> tuple[str, ...]:
    """Read the tokens of a file: one a line; empty lines and lines with `#` in front do not count.

    Raises:
      InvalidArgument: the file cannot be read, or a token is too short or not printable ASCII.
    """
    try:
        file = Path(path)
        if file.stat().st_size > MAX_FILE_BYTES:
            raise _bad_file(path, f"has more than {MAX_FILE_BYTES} bytes")
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(path, f"cannot be read ({error.__class__.__name__})") from error
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise _bad_file(path, "holds no token")
    for number, token in enumerate(tokens, 1):
        if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable():
            what = f"at least {MIN_TOKEN_CHARS} printable ASCII characters"
            raise _bad_file(path, f"has a token, number {number}, that is not {what}")
    return tokens


class BearerAuth(aio.ServerInterceptor):
    """Refuses calls without a valid token."""

    def __init__(self, tokens: Sequence[str]):
        self._digests = [_digest(token) for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Let a call through, or answer it with UNAUTHENTICATED."""
        details = handler_call_details
        handler = await continuation(details)
        if details.method.startswith(HEALTH) or handler is None:
            return handler
        error = self.obstacle(dict(details.invocation_metadata or ()))
        if error is None:
            return handler
        logger.info("%s refused: %s %s", details.method, error.id, error.name)
        return refusing(handler, error)

    def obstacle(self, metadata: dict) -> Unauthenticated | None:
        """Say why a caller is not let in, or return None."""
        given = metadata.get("authorization", "")
        if not isinstance(given, str) or not given.lower().startswith(SCHEME):
            return Unauthenticated(
                "RTPJ-5201 TOKEN_MISSING: this server wants a bearer token and the call has none."
                " Send the metadata `authorization: Bearer TOKEN`."
            )
        digest = _digest(given[len(SCHEME) :].strip())
        # Every token is compared: neither a match nor its place shows in the time.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            return None
        return Unauthenticated(
            "RTPJ-5202 TOKEN_WRONG: the bearer token of this call is not one of the server's."
            " Ask its operator for one."
        )


def refusing(handler: grpc.RpcMethodHandler, error: Unauthenticated) -> grpc.RpcMethodHandler:
    """Return a handler of the same shape that answers every call with an error."""

    async def refuse(_request: object, context: aio.ServicerContext) -> None:
        await context.abort(code_of(error), message_of(error), trailers(error))

    shape = bool(handler.request_streaming), bool(handler.response_streaming)
    return HANDLER_OF_SHAPE[shape](refuse)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _bad_file(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5203 TOKEN_FILE_INVALID: auth_token_file={path} {reason}. Write one token a line,"
        " for example from `openssl rand -hex 32`.",
        field="auth_token_file",
    )
