"""The client for asyncio: the methods of `client.py`, awaited."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from grpc import aio

from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client_messages import (
    CHANNEL_OPTIONS,
    RequestOptions,
    Tls,
    call_metadata,
    call_timeout_s,
    generate_request,
    score_request,
)
from rtp_jax.serving.output_messages import output_of, score_of
from rtp_jax.serving.status import error_of
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub


class AsyncClient:
    """A connection to one server; use it as an async context manager, or await `close`."""

    def __init__(self, address: str, *, token: str | None = None, tls: Tls | None = None):
        """Prepare a connection, on the running loop; arguments as for `Client`."""
        if tls is None:
            self._channel = aio.insecure_channel(address, CHANNEL_OPTIONS)
        else:
            self._channel = aio.secure_channel(address, tls.credentials(), CHANNEL_OPTIONS)
        self._stub = GenerationStub(self._channel)
        self._metadata = call_metadata(token)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._channel.close()

    async def generate(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> RequestOutput:
        """Generate and wait for the end."""
        request = generate_request(prompt, params, options)
        return output_of(await self._call(self._stub.Generate, request, options.timeout_s), prompt)

    async def stream(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> AsyncIterator[RequestOutput]:
        """Generate and yield what is new as it comes; closing the iterator aborts the request."""
        request = generate_request(prompt, params, options)
        timeout_s = call_timeout_s(options.timeout_s)
        call = self._stub.GenerateStream(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with _raising():
                async for frame in call:
                    yield output_of(frame, prompt)
        finally:
            call.cancel()

    async def score(
        self, prompt: object, continuations: Sequence, *, timeout_s: float | None = None
    ) -> list[ScoreOutput]:
        """Return the log-probability that the model gives to each continuation of a prompt."""
        request = score_request(prompt, continuations, timeout_s)
        answer = await self._call(self._stub.Score, request, timeout_s)
        return [score_of(score, answer.request_id) for score in answer.scores]

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        answer = await self._call(self._stub.Tokenize, pb.TokenizeRequest(text=text))
        return list(answer.token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        request = pb.DetokenizeRequest(token_ids=token_ids)
        return (await self._call(self._stub.Detokenize, request)).text

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by id; one that is not there yet is ended when it comes."""
        await self._call(self._stub.Abort, pb.AbortRequest(request_ids=request_ids))

    async def model_info(self) -> pb.GetModelInfoResponse:
        """Say which model is served."""
        return await self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest())

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Say what the server is."""
        return await self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())

    async def loads(self) -> pb.GetLoadsResponse:
        """Say how busy the engine is."""
        return await self._call(self._stub.GetLoads, pb.GetLoadsRequest())

    async def _call(self, method, request, timeout_s: float | None = None):
        with _raising():
            return await method(request, timeout=call_timeout_s(timeout_s), metadata=self._metadata)


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Raise grpc's errors as ours."""
    try:
        yield
    except aio.AioRpcError as error:
        raise error_of(error) from error
