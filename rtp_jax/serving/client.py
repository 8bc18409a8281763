"""A thin client of the generation service: Python values in, `RequestOutput` out, errors raised.

    with Client("127.0.0.1:50051") as client:
        for output in client.stream("1 + 1 =", SamplingParams(max_tokens=8)):
            print(output.outputs[0].text, end="", flush=True)

Errors of the server come back as the classes of `rtp_jax.errors`, with their id and field; what had
been generated before an error is in `partial_output`.  `async_client.py` is the same for asyncio.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rtp_jax.errors import Cancelled, DeadlineExceeded, RtpError, Unavailable
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
from rtp_jax.serving.status import detail_of, error_of
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub

POLL_S = 0.05
HEALTH_S = 5.0  # for the answer of one server to whether it serves


class Client:
    """A connection to a server; use it as a context manager, or call `close`."""

    def __init__(
        self, address: str | Sequence[str], *, token: str | None = None, tls: Tls | None = None
    ):
        """Prepare a connection, which is made when it is needed.

        Args:
          address: "host:port"; or several, of routers side by side: when one is lost, its
            streams go on through the next.
          token: sent as a bearer token with every call.
          tls: None: no TLS.
        """
        targets = parsed_targets(address)
        self.address = ", ".join(targets)
        options = channel_options(len(targets))
        if tls is None:
            channels = [grpc.insecure_channel(each, options) for each in targets]
        else:
            trust = tls.credentials()
            channels = [grpc.secure_channel(each, trust, options) for each in targets]
        self._channels = channels
        self._stubs = [GenerationStub(each) for each in channels]
        self._metadata = call_metadata(token)
        self._closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def generate(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> RequestOutput:
        """Generate and wait for the end.

        Args:
          prompt: a str, token ids, {"prompt_token_ids": [...]} or {"messages": [...]}.
          params: None: the defaults of the model.
          options: id, priority, timeout and others.

        Raises:
          RtpError: it was refused or failed; `partial_output` has what came before.
        """
        received = Received(generate_request(prompt, params, options), len(self._stubs))
        request = received.request
        while True:
            timeout_s, stub = call_timeout_s(received.timeout_s), self._stubs[0]
            try:
                with self._raising():
                    answer = stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
                    return output_of(answer, prompt)
            except RtpError as error:
                request = self._move(received, error, stub)

    def stream(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        options: RequestOptions = RequestOptions(),
    ) -> Iterator[RequestOutput]:
        """Generate and yield what is new as it comes; closing the iterator aborts the request."""
        received = Received(generate_request(prompt, params, options), len(self._stubs))
        request = received.request
        while True:
            timeout_s, stub = call_timeout_s(received.timeout_s), self._stubs[0]
            call = stub.GenerateStream(request, timeout=timeout_s, metadata=self._metadata)
            try:
                with self._raising(), contextlib.closing(_Cancelling(call)):
                    for frame in call:
                        if (new := received.take(frame)) is not None:
                            yield output_of(new, prompt)
                    return
            except RtpError as error:
                request = self._move(received, error, stub)

    def score(
        self, prompt: object, continuations: Sequence, *, timeout_s: float | None = None
    ) -> list[ScoreOutput]:
        """Return the log-probability that the model gives to each continuation of a prompt."""
        request = score_request(prompt, continuations, timeout_s)
        answer = self._call("Score", request, timeout_s)
        return [score_of(score, answer.request_id) for score in answer.scores]

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return list(self._call("Tokenize", pb.TokenizeRequest(text=text)).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self._call("Detokenize", pb.DetokenizeRequest(token_ids=token_ids)).text

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by id; one that is not there yet is ended when it comes."""
        self._call("Abort", pb.AbortRequest(request_ids=request_ids))

    def model_info(self) -> pb.GetModelInfoResponse:
        """Say which model is served."""
        return self._call("GetModelInfo", pb.GetModelInfoRequest())

    def server_info(self) -> pb.GetServerInfoResponse:
        """Say what the server is."""
        return self._call("GetServerInfo", pb.GetServerInfoRequest())

    def loads(self) -> pb.GetLoadsResponse:
        """Say how busy the engine is."""
        return self._call("GetLoads", pb.GetLoadsRequest())

    def is_serving(self, timeout_s: float = HEALTH_S) -> bool:
        """Ask for the health of the server; of several, one after another until one serves.

        Args:
          timeout_s: for each of them.

        Raises:
          Unavailable, DeadlineExceeded: none of them answers.
        """
        silent: RtpError | None = None
        answers = []
        for channel in self._channels:
            check = health_pb2_grpc.HealthStub(channel).Check  # pyright: ignore[reportAttributeAccessIssue]
            request = health_pb2.HealthCheckRequest()
            try:
                with self._raising():
                    answers.append(check(request, timeout=timeout_s, metadata=self._metadata))
            except (Unavailable, DeadlineExceeded) as error:
                silent = error
            if answers and answers[-1].status == health_pb2.HealthCheckResponse.SERVING:
                return True
        if silent is not None and not answers:
            raise silent
        return False

    def wait_until_serving(self, timeout_s: float) -> None:
        """Wait for a server that starts; raise `Unavailable` if it does not in time."""
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                if self.is_serving(min(left_s, HEALTH_S)):
                    return
            time.sleep(POLL_S)
        raise Unavailable(
            f"RTPJ-5108 NOT_SERVING_IN_TIME: {self.address} does not say SERVING after"
            f" {timeout_s:g} s. Its log says what it does."
        )

    def _call(self, method: str, request, timeout_s: float | None = None):
        """Call one target after another, until one is there."""
        for left in reversed(range(len(self._stubs))):
            stub = self._stubs[0]
            try:
                with self._raising():
                    return getattr(stub, method)(
                        request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
                    )
            except Unavailable:
                if not left:
                    raise
                self._leave(stub)
        raise AssertionError("a client has a target")

    def _move(
        self, received: Received, error: RtpError, stub: GenerationStub
    ) -> pb.GenerateRequest:
        """Turn to the next target for the rest of an answer, or raise."""
        request = received.rest(error)
        self._leave(stub)
        time.sleep(PAUSE_S)
        return request

    def _leave(self, stub: GenerationStub) -> None:
        """Use the next target from now on, unless another call has turned to it already."""
        if self._stubs[0] is stub:
            self._stubs.append(self._stubs.pop(0))

    @contextlib.contextmanager
    def _raising(self) -> Iterator[None]:
        """Raise grpc's errors as ours."""
        try:
            yield
        except grpc.RpcError as error:
            if self._closed:
                raise Cancelled(
                    "RTPJ-5112 CLIENT_CLOSED: the client was closed while a call ran. Keep it open"
                    " until its calls have ended."
                ) from error
            raise error_of(error) from error


def partial_output(error: RtpError) -> RequestOutput | None:
    """Return what had been generated before an error that a client raised, if anything."""
    if not isinstance(error.__cause__, grpc.RpcError):
        return None
    detail = detail_of(error.__cause__)
    if detail is None or not detail.HasField("partial"):
        return None
    return output_of(detail.partial, None)


class _Cancelling:
    """Cancels a call when it is closed, which does nothing to one that has ended."""

    def __init__(self, call):
        self._call = call

    def close(self) -> None:
        self._call.cancel()
