"""When requests are sent, and what is seen of them: over both doors, failures included."""

import asyncio
import sys

import pytest

from rtp_jax.benchmark.drive import drive
from rtp_jax.benchmark.figures import itl_s, num_tokens, ttft_s
from rtp_jax.benchmark.grpc_target import GrpcTarget
from rtp_jax.benchmark.http_target import HttpTarget
from rtp_jax.benchmark.targets import Asking, Message, RequestFailed, parse_address
from rtp_jax.benchmark.workload import Planned
from rtp_jax.errors import FailedPrecondition, InvalidArgument, Unavailable

ASKING = Asking(timeout_s=10.0)


class Metronome:
    """A target without a wire: a token every `pause_s`, one request at a time if it is `narrow`."""

    def __init__(self, pause_s: float = 0.0, *, narrow: bool = False):
        self.pause_s = pause_s
        self.num_live = self.most_live = 0
        self._room = asyncio.Semaphore(1 if narrow else 1000)

    async def stream(self, request: Planned, asking: Asking):
        """Yield the tokens."""
        self.num_live += 1
        self.most_live = max(self.most_live, self.num_live)
        async with self._room:
            for _ in range(request.num_output_tokens):
                await asyncio.sleep(self.pause_s)
                yield Message(1)
        self.num_live -= 1


def planned(
    count: int, num_output_tokens: int = 3, text: str = "hello", **arrival
) -> list[Planned]:
    """Plan requests that the fake engine answers with letters of their prompt."""
    ids = tuple(ord(letter) + 1 for letter in text)
    return [Planned(ids, num_output_tokens, **arrival) for _ in range(count)]


def driven(url: str, requests, *, asking: Asking = ASKING, concurrency: int | None = 4, **how):
    """Drive a server and return what was seen."""

    async def run():
        address = parse_address(url, token=None, ca=None)
        target = GrpcTarget(address) if url.startswith("grpc") else HttpTarget(address)
        try:
            return await drive(target, requests, asking, concurrency=concurrency, **how)
        finally:
            await target.close()

    return asyncio.run(run())


def test_a_closed_loop_keeps_as_many_requests_as_asked():
    async def run():
        target = Metronome(0.001)
        return target, await drive(target, planned(12), ASKING, concurrency=3)

    target, seen = asyncio.run(run())
    assert target.most_live == 3
    assert all(each.at_s == each.sent_s for each in seen)
    assert [len(each.messages) for each in seen] == [3] * 12
    assert all(each.failure is None for each in seen)


def test_waiting_for_a_busy_client_counts():
    """Ten arrive at once; the client has one place, so the last one waits for nine others."""

    async def run():
        requests = planned(10, 1, at_s=0.0)
        return await drive(Metronome(0.01), requests, ASKING, concurrency=1)

    seen = asyncio.run(run())
    assert all(each.at_s == 0.0 for each in seen)
    sent = [each.sent_s for each in seen]
    assert sent == sorted(sent)
    assert sent[-1] >= 0.09
    assert ttft_s(seen[-1]) >= 0.1
    assert seen[-1].messages[0][0] - seen[-1].sent_s < ttft_s(seen[-1]) - 0.08


def test_an_open_loop_sends_whether_or_not_the_server_keeps_up():
    async def run():
        target = Metronome(0.03, narrow=True)
        requests = [Planned((1,), 1, at_s=0.01 * i) for i in range(5)]
        return target, await drive(target, requests, ASKING, concurrency=None)

    target, seen = asyncio.run(run())
    assert target.most_live >= 4
    assert all(each.sent_s >= each.at_s for each in seen)
    assert ttft_s(seen[-1]) >= 0.03 * 5 - 0.04


def test_over_grpc(grpc_server):
    ended = []
    seen = driven(f"grpc://{grpc_server.address}", planned(6, 5), on_end=lambda: ended.append(1))
    assert len(ended) == 6
    for each in seen:
        assert (each.failure, num_tokens(each), each.num_prompt_tokens) == (None, 5, 5)
        assert each.num_cached_tokens == 3
        assert len(itl_s(each)) == 4
    params = grpc_server.engine.seen[-1]["params"]
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (5, True, 0.0)


def test_failures_over_grpc_are_counted_by_type(grpc_server):
    url = f"grpc://{grpc_server.address}"
    for text, failure in (("busy", "RTPJ-2201 QUEUE_FULL"), ("boom", "RTPJ-4101 REQUEST_FAULT")):
        (seen,) = driven(url, planned(1, 6, text))
        assert seen.failure == failure
    (late,) = driven(url, planned(1, 50, "slow"), asking=Asking(timeout_s=0.1))
    assert late.failure == "RTPJ-4001 DEADLINE"
    (gone,) = driven("grpc://127.0.0.1:1", planned(1))
    assert gone.failure == "gRPC UNAVAILABLE"


def test_over_http(http_server):
    asking = Asking(model="letters", extra_body={"return_token_ids": True})
    seen = driven(http_server.url, planned(6, 5), asking=asking, concurrency=2)
    assert http_server.most_live == 2
    for each in seen:
        assert (each.failure, num_tokens(each), each.num_prompt_tokens) == (None, 5, 5)
        assert each.num_cached_tokens == 2
        assert len(itl_s(each)) == 4
    assert http_server.seen[-1] == {
        "model": "letters",
        "prompt": list(planned(1)[0].prompt),
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "return_token_ids": True,
    }


@pytest.mark.parametrize(
    ("told_by", "known"), [("with_ids", True), ("with_running_usage", True), ("", False)]
)
def test_tokens_that_come_together(http_server, told_by, known):
    http_server.joined = 2
    if told_by:
        setattr(http_server, told_by, True)
    (seen,) = driven(http_server.url, planned(1, 5))
    assert len(seen.messages) == 3
    assert num_tokens(seen) == 5
    if known:
        assert [count for _, count in seen.messages] == [2, 2, 1]
        assert [gap == 0.0 for gap in itl_s(seen)] == [True, False, True, False]
    else:
        assert itl_s(seen) is None


def test_failures_over_http_are_counted_by_type(http_server):
    url = http_server.url
    http_server.refuse = 429, {"error": {"message": "no", "type": "rate_limit"}}
    assert driven(url, planned(1))[0].failure == "HTTP 429 rate_limit"
    http_server.refuse = 503, {"error": {"message": "RTPJ-4003 DRAINING: no. Try another."}}
    assert driven(url, planned(1))[0].failure == "RTPJ-4003 DRAINING"
    http_server.refuse = 404, {"detail": "nothing"}
    assert driven(url, planned(1))[0].failure == "HTTP 404"
    http_server.refuse, http_server.break_after = None, 2
    assert driven(url, planned(1))[0].failure == "stream cut short"
    http_server.break_after, http_server.error_after = None, 1
    assert driven(url, planned(1))[0].failure == "HTTP event 500"
    http_server.error_after, http_server.pause_s = None, 0.2
    (late,) = driven(url, planned(1, 9), asking=Asking(timeout_s=0.1))
    assert late.failure == "timeout"
    assert driven("http://127.0.0.1:1", planned(1))[0].failure == "HTTP ClientConnectorError"


def test_a_failure_leaves_the_others_alone(grpc_server):
    requests = [*planned(2), *planned(1, 6, "busy"), *planned(2)]
    failures = [each.failure for each in driven(f"grpc://{grpc_server.address}", requests)]
    assert failures == [None, None, "RTPJ-2201 QUEUE_FULL", None, None]


def test_a_stream_without_tokens_failed():
    class Silent(Metronome):
        async def stream(self, request, asking):
            if request.num_output_tokens == 2:
                raise RequestFailed("told so")
            yield Message(0)

    async def run():
        return await drive(Silent(), [*planned(1), *planned(1, 2)], ASKING, concurrency=1)

    assert [each.failure for each in asyncio.run(run())] == ["no token came", "told so"]


def described(url: str, token: str | None = None):
    """Ask a server what it serves."""

    async def run():
        address = parse_address(url, token=token, ca=None)
        target = GrpcTarget(address) if url.startswith("grpc") else HttpTarget(address)
        try:
            return await target.describe()
        finally:
            await target.close()

    return asyncio.run(run())


def test_what_servers_say_about_themselves(grpc_server, http_server):
    ours = described(f"grpc://{grpc_server.address}")
    assert (ours.model, ours.vocab_size, ours.about["dtype"]) == ("fake", 256, "float32")
    assert described(http_server.url).vocab_size == 100
    http_server.card = {"id": "x", "meta": {"n_vocab": 7}}
    assert described(f"{http_server.url}/v1/").vocab_size == 7
    http_server.card = {"id": "x"}
    assert described(http_server.url, token="secret-token").vocab_size is None


def test_servers_that_cannot_be_asked(http_server):
    http_server.card = "nothing"
    for url in (
        "grpc://127.0.0.1:1",
        "http://127.0.0.1:1",
        http_server.url,
        f"{http_server.url}/x",
    ):
        with pytest.raises(Unavailable, match=f"RTPJ-5504 TARGET_UNREACHABLE: {url}"):
            described(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:5", "ftp://x", "grpc://", "http:///"])
def test_an_address_that_is_none(url):
    with pytest.raises(InvalidArgument, match="RTPJ-5501 BENCH_OPTION_INVALID: --target"):
        parse_address(url, token=None, ca=None)
    with pytest.raises(InvalidArgument, match=r"RTPJ-5501 .*--tls-ca"):
        parse_address("grpcs://x:1", token=None, ca="no/such/file")


def test_http_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(FailedPrecondition, match="RTPJ-5506 AIOHTTP_ABSENT"):
        described("http://127.0.0.1:1")
