"""A server of `rtp_jax.generation.v1`, as a benchmark sees it."""

import re
from collections.abc import AsyncIterator

import grpc
from grpc import aio

from rtp_jax.benchmark.targets import Address, Asking, Message, RequestFailed, Served, unreachable
from rtp_jax.benchmark.workload import Planned
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub

DESCRIBE_TIMEOUT_S = 10.0
GRACE_S = 5.0  # the server ends a request that is late; the call waits a little longer
OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)
OUR_ERROR = re.compile(r"RTPJ-\d{4} [A-Z0-9_]+")


class GrpcTarget:
    """One channel to a server, on which all streams run."""

    def __init__(self, address: Address):
        """Prepare the channel, which connects when it is used."""
        self._address = address
        if address.scheme == "grpcs":
            credentials = grpc.ssl_channel_credentials(address.ca)
            self._channel = aio.secure_channel(address.rest, credentials, OPTIONS)
        else:
            self._channel = aio.insecure_channel(address.rest, OPTIONS)
        self._stub = GenerationStub(self._channel)
        token = address.token
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    async def describe(self) -> Served:
        """Ask which model, and which server."""
        asked = {"timeout": DESCRIBE_TIMEOUT_S, "metadata": self._metadata}
        try:
            model = await self._stub.GetModelInfo(pb.GetModelInfoRequest(), **asked)
            server = await self._stub.GetServerInfo(pb.GetServerInfoRequest(), **asked)
        except aio.AioRpcError as error:
            raise unreachable(self._address, failure_of(error)) from error
        about = {"server": f"rtp_jax {server.version}", "platform": server.platform}
        about |= {"dtype": model.dtype, "kv_dtype": model.kv_dtype}
        about |= {"max_num_seqs": model.max_num_seqs, "max_model_len": model.max_model_len}
        return Served(model.name, model.vocab_size, about)

    async def stream(self, request: Planned, asking: Asking) -> AsyncIterator[Message]:
        """Send a request and yield what each frame brings."""
        message, timeout_s = request_message(request, asking), asking.timeout_s + GRACE_S
        call = self._stub.GenerateStream(message, timeout=timeout_s, metadata=self._metadata)
        finished = False
        try:
            async for frame in call:
                finished |= frame.finished
                yield message_of(frame)
        except aio.AioRpcError as error:
            raise RequestFailed(failure_of(error)) from error
        finally:
            call.cancel()
        if not finished:
            raise RequestFailed("stream cut short")

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def request_message(request: Planned, asking: Asking) -> pb.GenerateRequest:
    """Spell a request."""
    message = pb.GenerateRequest(model=asking.model, timeout_s=asking.timeout_s)
    message.sampling.temperature = asking.temperature
    message.sampling.ignore_eos = asking.ignore_eos
    message.sampling.max_tokens = request.num_output_tokens
    if isinstance(request.prompt, str):
        message.text = request.prompt
    else:
        message.token_ids.ids.extend(request.prompt)
    return message


def message_of(frame: pb.GenerateFrame) -> Message:
    """Count what a frame brings; usage is complete in the last one."""
    num_tokens = sum(len(part.token_ids) for part in frame.completions)
    if not frame.finished:
        return Message(num_tokens)
    usage = frame.usage
    cached = usage.cached_tokens
    num_cached = cached.device + cached.host + cached.disk + cached.remote + cached.peer
    return Message(num_tokens, usage.prompt_tokens, usage.output_tokens, num_cached)


def failure_of(error: aio.AioRpcError) -> str:
    """Name a failure: our error's id and name, else the status."""
    ours = OUR_ERROR.match(error.details() or "")
    return ours[0] if ours else f"gRPC {error.code().name}"
