"""Around a call: ids and traces echoed, deadlines joined, faults kept inside, answers counted."""

import logging
import time

import grpc
import pytest

from rtp_jax import errors
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.wire import generation_pb2 as pb
from tests.serving.fake_engine import FakeEngine
from tests.serving.raw import Raw

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HELLO = pb.GenerateRequest(text="hello").SerializeToString()
CODES = [  # what the engine says, and what a client sees
    ("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, "RTPJ-2201"),
    ("forbidden", grpc.StatusCode.FAILED_PRECONDITION, "RTPJ-4004"),
    ("boom", grpc.StatusCode.INTERNAL, "RTPJ-4101"),
    ("bug", grpc.StatusCode.INTERNAL, "RTPJ-5001"),
]


@pytest.fixture(scope="module")
def raw(running):
    sender = Raw(running.address)
    yield sender
    sender.close()


@pytest.mark.parametrize(("text", "code", "id"), CODES)
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
def test_the_engines_errors_are_statuses(raw, method, text, code, id):
    found, error, _, _ = raw.send(method, pb.GenerateRequest(text=text).SerializeToString())
    assert (found, error.id) == (code, id)


def test_a_bug_says_nothing_of_itself_to_the_client(raw, caplog):
    with caplog.at_level(logging.ERROR):
        _, error, _, _ = raw.send("Generate", pb.GenerateRequest(text="bug").SerializeToString())
    assert "secret" not in str(error)
    assert "a secret of ours" in caplog.text


def test_ids_and_traces_are_echoed(raw, running):
    sent = (("x-request-id", "abc-1"), ("traceparent", TRACE))
    *_, metadata = raw.send("Generate", HELLO, metadata=sent)
    assert (metadata["x-request-id"], metadata["traceparent"]) == ("abc-1", TRACE)
    assert running.engine.seen[-1]["id"].startswith("abc-1-")
    *_, metadata = raw.send("GetLoads", b"", metadata=(("traceparent", "nonsense"),))
    assert "traceparent" not in metadata
    assert len(metadata["x-request-id"]) == 32


def test_a_bad_x_request_id_is_refused(raw):
    code, error, _, _ = raw.send("Generate", HELLO, metadata=(("x-request-id", "a b"),))
    assert (code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "x-request-id")


def test_the_nearest_deadline_counts(servers):
    running = servers.start(max_request_s=100.0)
    with Client(running.address) as client:
        sender = Raw(running.address)
        for timeout_s, field, expected in [(50, None, 50), (50, 7.0, 7), (None, None, 100)]:
            request = pb.GenerateRequest(text="x")
            if field:
                request.timeout_s = field
            sender.send("Generate", request.SerializeToString(), timeout=timeout_s)
            left_s = running.engine.seen[-1]["deadline_s"] - time.monotonic()
            assert expected - 2 < left_s < expected + 1  # grpc rounds timeouts up
        sender.close()
        assert client.is_serving()


def test_a_deadline_of_the_server_comes_with_what_there_is(servers):
    running = servers.start(max_request_s=0.2)
    with Client(running.address) as client, pytest.raises(errors.DeadlineExceeded):
        list(client.stream("slow", SamplingParams(max_tokens=400)))
    assert running.metrics.rpcs["GenerateStream", "DEADLINE_EXCEEDED"] == 1


def test_a_deadline_of_the_client_ends_the_request(running, raw):
    request = pb.GenerateRequest(text="slow", sampling=pb.SamplingParams(max_tokens=400))
    code, *_ = raw.send("Generate", request.SerializeToString(), timeout=0.2)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert ended(running)


def test_abort_ends_a_stream_with_its_status(client, running):
    stream = client.stream(
        "slow", SamplingParams(max_tokens=400), RequestOptions(request_id="mine")
    )
    next(stream)
    client.abort(["mine"])
    with pytest.raises(errors.Cancelled, match="RTPJ-4002"):
        list(stream)
    assert ended(running)


def test_an_abort_may_overtake_its_request(client):
    client.abort(["early"])
    with pytest.raises(errors.Cancelled, match="RTPJ-4002"):
        client.generate("hello", None, RequestOptions(request_id="early"))
    assert client.generate("hello", None, RequestOptions(request_id="early")).finished


def test_two_live_requests_have_two_ids(client):
    stream = client.stream("slow", SamplingParams(max_tokens=400), RequestOptions(request_id="one"))
    next(stream)
    with pytest.raises(errors.AlreadyExists, match="RTPJ-4005") as raised:
        client.generate("hello", None, RequestOptions(request_id="one"))
    assert raised.value.field == "request_id"
    stream.close()


def test_a_disconnect_ends_its_requests(running):
    client = Client(running.address)
    streams = [client.stream("slow", SamplingParams(max_tokens=400)) for _ in range(5)]
    for stream in streams:
        next(stream)
    assert len(running.engine.live) == 5
    client.close()
    assert ended(running)
    for stream in streams:
        with pytest.raises(errors.Cancelled, match="RTPJ-5112"):
            list(stream)


def test_before_the_engine_is_there(servers):
    sender = Raw(servers.start(engine=False).address)
    for method in ("Generate", "GenerateStream", "GetLoads", "GetModelInfo", "Abort"):
        code, error, _, _ = sender.send(method, HELLO if "Generate" in method else b"")
        assert (code, error.id) == (grpc.StatusCode.UNAVAILABLE, "RTPJ-5010")
        assert error.retry_after_s > 0
    assert sender.send("GetServerInfo", b"")[0] == grpc.StatusCode.OK
    sender.close()


def test_while_draining(servers):
    running = servers.start()
    running.engine.stop_admitting()
    with Client(running.address) as client, pytest.raises(errors.Unavailable) as raised:
        client.generate("hello")
    assert (raised.value.id, raised.value.retry_after_s) == ("RTPJ-4003", 0.5)


def test_without_a_tokenizer(servers):
    running = servers.start(FakeEngine(with_tokenizer=False))
    with Client(running.address) as client:
        with pytest.raises(errors.FailedPrecondition, match="RTPJ-5014"):
            client.tokenize("a")
        assert client.generate([5, 6]).outputs[0].token_ids == [5, 6, 5, 6]


def test_answers_are_counted_and_refusals_logged(running, raw, caplog):
    before = running.metrics.rpcs["Generate", "INVALID_ARGUMENT"]
    with caplog.at_level(logging.WARNING, "rtp_jax.requests"):
        raw.send("Generate", pb.GenerateRequest(text="SECRET", timeout_s=-1).SerializeToString())
    assert running.metrics.rpcs["Generate", "INVALID_ARGUMENT"] == before + 1
    assert "RTPJ-5007 TIMEOUT_INVALID" in caplog.text
    assert "SECRET" not in caplog.text


def ended(running) -> bool:
    """Wait until nothing is live."""
    until = time.monotonic() + 5
    while running.engine.live and time.monotonic() < until:
        time.sleep(0.01)
    return not running.engine.live
