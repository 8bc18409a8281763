"""Members of a router come, go, change their role or their life; no request notices."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from rtp_jax import SamplingParams
from rtp_jax.serving import workers as workers_module
from rtp_jax.serving.client import Client
from rtp_jax.serving.members import Member, write_members
from rtp_jax.serving.workers import Workers
from rtp_jax.wire import generation_pb2 as pb
from tests.serving.routers import CONFIG, started_router, until
from tests.serving.started import Servers

LONG = SamplingParams(max_tokens=250, temperature=1.0, seed=11, ignore_eos=True)
SHORT = SamplingParams(max_tokens=2, ignore_eos=True)


@pytest.fixture(scope="module")
def addresses(real_engine):
    """Two servers around one engine, so that a role or an epoch is that of both."""
    started = Servers()
    yield [started.start(real_engine).address for _ in range(2)]
    started.stop()


@pytest.fixture
def listed(addresses, tmp_path):
    """Return a file that lists both."""
    path = tmp_path / "members.yaml"
    write_members(path, [Member(each) for each in addresses])
    return path


@pytest.fixture
def router(listed, tiny_model):
    """Return a router that follows the file."""
    with started_router(tiny_model, [], sees=2, members=str(listed)) as running:
        yield running


@pytest.fixture
def client(router):
    with Client(router.address) as connected:
        yield connected


def ids_of(stream) -> list[int]:
    """Put the tokens of a stream together."""
    return [token for output in stream for token in output.outputs[0].token_ids]


def begin(client, router):
    """Start a long request; return its stream, its tokens so far, and where it is."""
    stream = client.stream([5] * 20, LONG)
    ids = list(next(stream).outputs[0].token_ids)
    link = next(each for each in router.engine.workers.links.values() if each.attempts)
    return stream, ids, link


def test_a_worker_that_leaves_finishes_what_it_has(router, client, listed, addresses):
    expected = ids_of(client.stream([5] * 20, LONG))
    stream, ids, link = begin(client, router)
    write_members(listed, [Member(each) for each in addresses if each != link.address])
    until(lambda: link.departing)
    assert link.attempts  # it is still at it, so what follows is about a worker that leaves
    sent = link.num_sent
    for _ in range(3):
        client.generate([5, 6], SHORT)
    assert link.num_sent == sent
    assert ids + ids_of(stream) == expected
    assert (router.engine.num_resumed, link.num_lost) == (0, 0)
    until(lambda: link.address not in router.engine.workers.links)


def test_what_a_leaving_worker_does_not_finish_in_time_goes_elsewhere(
    router, client, listed, addresses, monkeypatch
):
    monkeypatch.setattr(workers_module, "LINGER_S", 0.0)
    expected = ids_of(client.stream([5] * 20, LONG))
    stream, ids, link = begin(client, router)
    write_members(listed, [Member(each) for each in addresses if each != link.address])
    assert ids + ids_of(stream) == expected
    assert router.engine.num_resumed >= 1


def test_the_last_worker_may_take_its_time(router, client, listed, addresses, monkeypatch):
    """Nobody else could finish what it has."""
    monkeypatch.setattr(workers_module, "LINGER_S", 0.0)
    expected = ids_of(client.stream([5] * 20, LONG))
    links = router.engine.workers.links
    write_members(listed, [Member(addresses[0])])
    until(lambda: [*links] == addresses[:1])
    stream, ids, link = begin(client, router)
    write_members(listed, [])
    until(lambda: link.departing)
    assert link.attempts
    assert ids + ids_of(stream) == expected
    assert (router.engine.num_resumed, link.num_lost) == (0, 0)
    until(lambda: not links)


@pytest.mark.parametrize("linger_s", [0.0, 30.0])
def test_a_score_at_a_worker_that_leaves_is_answered(
    router, client, listed, addresses, monkeypatch, real_engine, linger_s
):
    """By the worker that leaves if it may take its time, or else by the other one."""
    monkeypatch.setattr(workers_module, "LINGER_S", linger_s)
    expected = client.score("The page", [" pool"])
    go, score_async, asked = threading.Event(), real_engine.score_async, []

    async def blocked(*arguments, **options):
        asked.append(1)
        while len(asked) == 1 and not go.is_set():
            await asyncio.sleep(0.01)
        return await score_async(*arguments, **options)

    monkeypatch.setattr(real_engine, "score_async", blocked)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.score, "The page", [" pool"])
        until(lambda: asked)
        link = next(each for each in router.engine.workers.links.values() if each.attempts)
        write_members(listed, [Member(each) for each in addresses if each != link.address])
        until(lambda: link.departing)
        if linger_s:
            assert link.attempts
            go.set()
        try:
            assert answer.result(20)[0].logprobs == pytest.approx(expected[0].logprobs, abs=1e-3)
        finally:
            go.set()
    assert len(asked) == (1 if linger_s else 2)
    until(lambda: link.address not in router.engine.workers.links)


def test_a_router_that_starts_asks_another_worker_if_one_leaves():
    """The connection is closed under the question for the model; the next one answers it."""
    asked = []

    def link(answer) -> Any:
        async def get_model_info(*_, **__):
            asked.append(answer)
            if answer is None:
                raise asyncio.CancelledError  # what grpc raises of a channel that is closed
            return answer

        generation = SimpleNamespace(GetModelInfo=get_model_info)
        return SimpleNamespace(generates=True, generation=generation, metadata=())

    async def ask() -> str:
        workers = Workers(CONFIG, model="fake", fingerprint="")
        links = {"a": link(None), "b": link(pb.GetModelInfoResponse(name="fake"))}
        workers.links = links
        info = await workers.model_info()  # before the loop has run anything else
        links.clear()
        await workers.close()
        return info.name

    assert asyncio.run(asyncio.wait_for(ask(), 10)) == "fake"
    assert len(asked) == 2


def test_a_worker_that_comes_back_while_it_leaves_stays(router, client, listed, addresses):
    expected = ids_of(client.stream([5] * 20, LONG))
    stream, ids, link = begin(client, router)
    write_members(listed, [Member(each) for each in addresses if each != link.address])
    until(lambda: link.departing)
    write_members(listed, [Member(each) for each in addresses])
    until(lambda: link.usable)
    assert ids + ids_of(stream) == expected
    assert router.engine.num_resumed == 0
    until(lambda: len(router.engine.workers.placing.router.workers) == 2)
    assert router.engine.workers.links[link.address] is link


def test_a_role_is_changed_by_the_file(router, client, listed, addresses):
    links = router.engine.workers.links
    for role in ("decode", "both"):
        write_members(listed, [Member(addresses[0], role=role), Member(addresses[1])])
        until(lambda role=role: links[addresses[0]].facts.role == role)
        assert client.generate([5, 6], SHORT).finished


@pytest.mark.parametrize("what", ["epoch", "layout"])
def test_another_life_is_not_used_until_the_file_names_it(router, client, listed, addresses, what):
    link = router.engine.workers.links[addresses[0]]
    right = link.facts.epoch if what == "epoch" else link.facts.layout.hex()
    write_members(listed, [Member(addresses[0], **{what: "beef"}), Member(addresses[1])])
    until(lambda: not link.usable and "beef" in link.reason)
    assert addresses[0] not in router.engine.workers.placing.router.workers
    sent = link.num_sent
    assert client.generate([5, 6], SHORT).finished
    assert link.num_sent == sent
    write_members(listed, [Member(addresses[0], **{what: right}), Member(addresses[1])])
    until(lambda: link.usable)
    assert addresses[0] in router.engine.workers.placing.router.workers


def test_a_broken_file_keeps_the_workers_and_says_so(router, client, listed, caplog):
    listed.write_text("- {address: ")
    until(lambda: "RTPJ-5605" in caplog.text)
    assert "the workers stay as they are" in caplog.text
    assert len(router.engine.workers.placing.router.workers) == 2
    assert client.generate([5, 6], SHORT).finished
    listed.unlink()
    time.sleep(0.6)
    assert len(router.engine.workers.placing.router.workers) == 2
