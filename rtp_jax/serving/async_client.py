"""The client for asyncio: the methods of `client.py`, awaited."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from grpc import aio

from rtp_jax.errors import RtpError, Unavailable
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client_messages import (
    RequestOptions,
    Tls,
    call_metadata,
    call_timeout_s,
    channel_options,
    generate_request,
    score_request,
)
from rtp_jax.serving.output_messages import output_of, score_of
from rtp_jax.serving.received import PAUSE_S, Received, parsed_targets
from rtp_jax.serving.status import error_of
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub


class AsyncClient:
    """A connection to a server; use it as an async context manager, or await `close`."""

    def __init__(
        self, address: str | Sequence[str], *, token: str | None = None, tls: Tls | None = None
    ):
        """Prepare a connection, on the running loop; arguments as for `Client`."""
        targets = parsed_targets(address)
        options = channel_options(len(targets))
        if tls is None:
            channels = [aio.insecure_channel(each, options) for each in targets]
        else:
            trust = tls.credentials()
            channels = [aio.secure_channel(each, trust, options) for each in targets]
        self._channels, self._stubs = channels, [GenerationStub(each) for each in channels]
        self._metadata = call_metadata(token)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        for channel in self._channels:
            await channel.close()

    async def generate(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> RequestOutput:
        """Generate and wait for the end."""
        received = Received(generate_request(prompt, params, options), len(self._stubs))
        request = received.request
        while True:
            timeout_s, stub = call_timeout_s(received.timeout_s), self._stubs[0]
            try:
                with _raising():
                    call = stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
                    return output_of(await call, prompt)
            except RtpError as error:
                request = await self._move(received, error, stub)

    async def stream(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncIterator[RequestOutput]:
        """Generate and yield what is new as it comes; closing the iterator aborts the request."""
        received = Received(generate_request(prompt, params, options), len(self._stubs))
        request = received.request
        while True:
            timeout_s, stub = call_timeout_s(received.timeout_s), self._stubs[0]
            call = stub.GenerateStream(request, timeout=timeout_s, metadata=self._metadata)
            try:
                with _raising():
                    async for frame in call:
                        if (new := received.take(frame)) is not None:
                            yield output_of(new, prompt)
                return
            except RtpError as error:
                request = await self._move(received, error, stub)
            finally:
                call.cancel()

    async def score(
        self, prompt: object, continuations: Sequence, *, timeout_s: float | None = None
    ) -> list[ScoreOutput]:
        """Return the log-probability that the model gives to each continuation of a prompt."""
        request = score_request(prompt, continuations, timeout_s)
        answer = await self._call("Score", request, timeout_s)
        return [score_of(score, answer.request_id) for score in answer.scores]

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        answer = await self._call("Tokenize", pb.TokenizeRequest(text=text))
        return list(answer.token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        request = pb.DetokenizeRequest(token_ids=token_ids)
        return (await self._call("Detokenize", request)).text

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by id; one that is not there yet is ended when it comes."""
        await self._call("Abort", pb.AbortRequest(request_ids=request_ids))

    async def model_info(self) -> pb.GetModelInfoResponse:
        """Say which model is served."""
        return await self._call("GetModelInfo", pb.GetModelInfoRequest())

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Say what the server is."""
        return await self._call("GetServerInfo", pb.GetServerInfoRequest())

    async def loads(self) -> pb.GetLoadsResponse:
        """Say how busy the engine is."""
        return await self._call("GetLoads", pb.GetLoadsRequest())

    async def _call(self, method: str, request, timeout_s: float | None = None):
        """Call one target after another, until one is there."""
        for left in reversed(range(len(self._stubs))):
            stub = self._stubs[0]
            try:
                with _raising():
                    return await getattr(stub, method)(
                        request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
                    )
            except Unavailable:
                if not left:
                    raise
                self._leave(stub)
        raise AssertionError("a client has a target")

    async def _move(
        self, received: Received, error: RtpError, stub: GenerationStub
    ) -> pb.GenerateRequest:
        """Turn to the next target for the rest of an answer, or raise."""
        request = received.rest(error)
        self._leave(stub)
        await asyncio.sleep(PAUSE_S)
        return request

    def _leave(self, stub: GenerationStub) -> None:
        """Use the next target from now on, unless another call has turned to it already."""
        if self._stubs[0] is stub:
            self._stubs.append(self._stubs.pop(0))


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Raise grpc's errors as ours."""
    try:
        yield
    except aio.AioRpcError as error:
        raise error_of(error) from error
