"""A client that sends what no stub would: raw bytes, to any method."""

import grpc

from rtp_jax.serving.status import error_of

SERVICE = "/rtp_jax.generation.v1.Generation/"
STREAMS = {"GenerateStream"}


class Raw:
    """Sends bytes, returns the status code, our error and the metadata."""

    def __init__(self, address: str, token: str | None = None):
        self.channel = grpc.insecure_channel(address)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def send(self, method: str, data: bytes, *, timeout: float = 10.0, metadata=()):
        """Call a method; return (code, error or None, answers, initial metadata)."""
        path = method if method.startswith("/") else SERVICE + method
        metadata = (*self.metadata, *metadata)
        if method in STREAMS:
            call = self.channel.unary_stream(path)(data, timeout=timeout, metadata=metadata)
            try:
                answers = list(call)
            except grpc.RpcError as error:
                return error.code(), error_of(error), [], dict(call.initial_metadata())
            return grpc.StatusCode.OK, None, answers, dict(call.initial_metadata())
        send = self.channel.unary_unary(path)
        try:
            answer, call = send.with_call(data, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), error_of(error), [], dict(error.initial_metadata())
        return grpc.StatusCode.OK, None, [answer], dict(call.initial_metadata())

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()
