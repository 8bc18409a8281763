"""`rtp-jax status`: the workers of a router, their roles, pages, queues and hit rates."""

import argparse
from collections.abc import Sequence

import grpc

from rtp_jax.serving.auth import read_tokens
from rtp_jax.serving.client_messages import CHANNEL_OPTIONS, Tls, call_metadata
from rtp_jax.serving.flags import parse
from rtp_jax.serving.router_status import as_json, as_text
from rtp_jax.serving.status import error_of
from rtp_jax.wire import router_pb2 as pb
from rtp_jax.wire.router_pb2_grpc import RouterStatusStub

TIMEOUT_S = 10.0


def status(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Ask a router and show what it says."""
    parser.add_argument("router", metavar="HOST:PORT", help="where the router listens")
    parser.add_argument("--json", action="store_true", help="as JSON, by the names of router.proto")
    parser.add_argument("--token-file", metavar="FILE", help="its first line is the bearer token")
    parser.add_argument("--tls-ca", metavar="FILE", help="PEM file of the CA; without it no TLS")
    parsed = parse(parser, arguments)
    token = read_tokens(parsed.token_file)[0] if parsed.token_file else None
    tls = Tls(ca=parsed.tls_ca) if parsed.tls_ca else None
    answer = ask(parsed.router, token=token, tls=tls)
    if parsed.json:
        print(as_json(answer))
    else:
        print(as_text(answer))
    return 0


def ask(address: str, *, token: str | None = None, tls: Tls | None = None) -> pb.GetStatusResponse:
    """Ask a router for its status.

    Raises:
      RtpError: it does not answer, or is no router.
    """
    if tls is None:
        channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(address, tls.credentials(), CHANNEL_OPTIONS)
    with channel:
        try:
            return RouterStatusStub(channel).GetStatus(
                pb.GetStatusRequest(), timeout=TIMEOUT_S, metadata=call_metadata(token)
            )
        except grpc.RpcError as error:
            raise error_of(error) from error
