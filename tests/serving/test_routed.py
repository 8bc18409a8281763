"""A router before two real engines answers as one of them would, whatever happens to the other.

The answer of one engine, asked directly, is the reference for everything.
"""

import asyncio
import threading
import time

import pytest

from rtp_jax import SamplingParams, errors
from rtp_jax.request import FinishReason
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.attempts import Lost
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.main import main
from rtp_jax.serving.members import Member
from rtp_jax.serving.quotas import read_quotas
from rtp_jax.serving.router_status import as_text
from rtp_jax.serving.status_command import ask as ask_status
from rtp_jax.wire import generation_pb2 as pb
from tests.engine.workload import cases
from tests.serving.http_client import ask
from tests.serving.routers import LONG, check_same, collected, started_router, until


def test_a_client_cannot_tell_many_from_one(routed, direct):
    for case in cases(13):
        mine, theirs = (each.stream(case.prompt, case.params) for each in (routed, direct))
        check_same(collected(mine), collected(theirs))
    chat = {"messages": [{"role": "user", "content": "What is a page?"}]}
    greedy = SamplingParams(temperature=0.0, max_tokens=20)
    for prompt in ("The page pool", chat, {"prompt_token_ids": [5, 6, 7]}):
        mine, theirs = routed.generate(prompt, greedy), direct.generate(prompt, greedy)
        assert mine.outputs == theirs.outputs
    mine, theirs = (each.score("The page", [" pool", [7, 8]]) for each in (routed, direct))
    assert [score.token_ids for score in mine] == [score.token_ids for score in theirs]
    assert [s.total_logprob for s in mine] == pytest.approx([s.total_logprob for s in theirs])
    assert routed.tokenize("a page") == direct.tokenize("a page")
    assert routed.detokenize([40, 41]) == direct.detokenize([40, 41])
    for field in ("name", "vocab_size", "max_model_len", "page_size", "fingerprint"):
        assert getattr(routed.model_info(), field) == getattr(direct.model_info(), field)
    assert routed.loads().num_pages == 2 * direct.loads().num_pages
    assert routed.is_serving()


def test_prompt_logprobs_and_prompt_ids_come_through(routed, direct):
    params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=1)
    options = RequestOptions(return_prompt_token_ids=True)
    mine, theirs = (each.generate("The page pool", params, options) for each in (routed, direct))
    assert mine.prompt_token_ids == theirs.prompt_token_ids
    assert [list(t or ()) for t in mine.prompt_logprobs] == [
        list(t or ()) for t in theirs.prompt_logprobs
    ]


def test_a_truncated_prompt_is_truncated_once(routed, direct):
    params = SamplingParams(temperature=0.0, max_tokens=5, truncate_prompt_tokens=8)
    long = [7, 8, 9] * 100
    mine, theirs = routed.generate(long, params), direct.generate(long, params)
    assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids


def test_errors_of_a_worker_pass_through_with_their_field(routed, direct):
    for prompt, params in (([9999], None), ([5], SamplingParams(max_tokens=5000))):
        refused = []
        for each in (routed, direct):
            with pytest.raises(errors.RtpError) as error:
                each.generate(prompt, params)
            refused.append((error.value.id, error.value.field))
        assert refused[0] == refused[1]


def test_abort_reaches_the_worker(router, engines, routed):
    for address in (router.address, None):
        stream = routed.stream([5] * 20, LONG, RequestOptions(request_id="to-end"))
        next(stream)
        if address is None:  # the client goes away
            stream.close()
        else:
            routed.abort(["to-end"])
            last = list(stream)[-1]
            assert last.outputs[0].finish_reason == "abort"
        until(lambda: all(engine.loads().num_open_requests == 0 for engine in engines))
        until(lambda: not router.engine.journeys)
    routed.abort(["later"])
    with pytest.raises(errors.Cancelled, match="RTPJ-4002"):
        routed.generate([5], SamplingParams(max_tokens=2), RequestOptions(request_id="later"))


def test_an_id_is_live_once(routed):
    stream = routed.stream([5] * 20, LONG, RequestOptions(request_id="once"))
    next(stream)
    with pytest.raises(errors.AlreadyExists, match="RTPJ-4005"):
        routed.generate([5], None, RequestOptions(request_id="once"))
    stream.close()


def test_a_deadline_holds_across_workers(router, routed):
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        for _ in routed.stream([5] * 20, LONG, RequestOptions(timeout_s=0.05)):
            pass
    assert time.monotonic() - began < 2
    assert ask_status(router.address).num_failed == 1


def test_a_stream_that_fails_behind_tokens_is_counted_once(engines, router, routed, monkeypatch):
    for engine in engines:
        runner = engine._parts.runner

        def slow(batch, execute=runner.execute):
            time.sleep(0.02)
            return execute(batch)

        monkeypatch.setattr(runner, "execute", slow)
    stream = routed.stream([5] * 20, LONG, RequestOptions(timeout_s=1.0))
    assert next(stream).outputs[0].token_ids
    with pytest.raises(errors.DeadlineExceeded):
        list(stream)
    assert ask_status(router.address).num_failed == 1


def test_what_breaks_behind_the_end_of_an_answer_is_no_failure(router, routed, monkeypatch):
    async def without_a_token(journey, choice):
        for output in journey.end(FinishReason.STOP, None):
            yield output
        raise Lost(errors.Unavailable("RTPJ-9999 GARBLED: a test says so."), choice.worker)

    attempts = router.engine._attempts
    monkeypatch.setattr(attempts, "_from_worker", without_a_token)
    monkeypatch.setattr(attempts, "_max_tries", 1)
    answer = routed.generate([5] * 20, LONG)
    assert answer.outputs[0].finish_reason == "stop"
    assert ask_status(router.address).num_failed == 0


def test_no_worker_is_said_after_a_while(router, routed, workers):
    members = [Member(worker.address) for worker in workers]
    router.set_members([])

    def come_back():
        time.sleep(0.3)
        router.set_members(members)

    threading.Thread(target=come_back).start()
    assert routed.generate([5], SamplingParams(max_tokens=2)).finished  # it waited
    router.set_members([])
    began = time.monotonic()
    with pytest.raises(errors.Unavailable, match="RTPJ-7004"):
        routed.generate([5], SamplingParams(max_tokens=2))
    assert 0.5 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("model", "serves 'fake'"), ("_fingerprint", "other weights"), ("epoch", "is the member")],
)
def test_a_worker_that_is_not_the_one_meant_is_not_used(router, workers, wanted, words):
    router.set_members([])
    if wanted != "epoch":
        setattr(router.engine.workers, wanted, "another")
    epoch = "another" if wanted == "epoch" else ""
    router.set_members([Member(worker.address, epoch=epoch) for worker in workers])
    link = router.engine.workers.links[workers[0].address]
    until(lambda: words in link.reason)
    assert not link.usable
    assert not router.engine.workers.placing.router.workers


def test_page_events_make_a_router_choose_who_has_the_pages(router, routed, workers):
    shared = list(range(40, 140))
    short = SamplingParams(max_tokens=2, ignore_eos=True)
    cached = [routed.generate([*shared, 5 + i], short).num_cached_tokens for i in range(8)]
    assert sum(count >= 96 for count in cached) >= 6


def test_tenants_and_sessions(router, workers):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), tenant="a", session="s")
    request.sampling.max_tokens = 2
    with Client(router.address) as routed:
        assert routed._stubs[0].Generate(request).completions
    with (
        Client(workers[0].address) as worker,
        pytest.raises(errors.Unimplemented, match="RTPJ-5606"),
    ):
        worker._call("Generate", request)
    request.ClearField("tenant")
    with Client(workers[0].address) as worker:
        assert worker._call("Generate", request).completions


def test_quotas_are_read_and_kept(tiny_model, workers, tmp_path):
    (tmp_path / "quotas").write_text("a: {tokens_per_s: 2, burst_tokens: 20}")
    given = {"quotas": str(tmp_path / "quotas"), "session_slack": 0.75}
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 20), tenant="a")
    request.sampling.max_tokens = 8
    with (
        started_router(tiny_model, [workers[0].address], **given) as running,
        Client(running.address) as routed,
    ):
        assert running.engine.workers.placing.router.settings.session_slack == 0.75
        assert routed._call("Generate", request).completions
        with pytest.raises(errors.ResourceExhausted, match="RTPJ-7005"):
            routed._call("Generate", request)
        request.tenant = "b"
        assert routed._call("Generate", request).completions


@pytest.mark.parametrize("text", ["- a", "a: 1", "a: {speed: 1}", "a: {weight: x}", "["])
def test_a_file_that_holds_no_quotas_is_refused(tmp_path, text):
    (tmp_path / "quotas").write_text(text)
    with pytest.raises(errors.InvalidArgument, match="RTPJ-5608"):
        read_quotas(tmp_path / "quotas")
    with pytest.raises(errors.InvalidArgument, match="RTPJ-5608"):
        read_quotas(tmp_path / "absent")


def test_the_http_door_works_in_front_of_a_router(router, workers):
    body = {"model": "fake", "prompt": "The page pool", "max_tokens": 12, "temperature": 0}
    answers = []
    for port in (router.http.port, workers[0].http.port):
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", body)
        answers.append([choice["text"] for choice in answer.json["choices"]])
    assert answers[0] == answers[1]


def test_many_at_once_all_get_their_own(router, direct):
    work = cases(26)

    async def run():
        async with AsyncClient(router.address) as routed:
            return await asyncio.gather(*(routed.generate(c.prompt, c.params) for c in work))

    outputs = asyncio.run(run())
    for case, output in zip(work, outputs, strict=True):
        expected = direct.generate(case.prompt, case.params)
        assert [p.token_ids for p in output.outputs] == [p.token_ids for p in expected.outputs]


def test_status_as_text_json_page_and_metrics(router, routed):
    routed.generate([5] * 40, SamplingParams(max_tokens=2))
    status = ask_status(router.address)
    assert status.num_requests >= 1
    assert [worker.state for worker in status.workers] == [1, 1]
    assert sum(worker.num_sent for worker in status.workers) == status.num_requests
    text = as_text(status)
    for worker in status.workers:
        assert worker.address in text
    assert "serving" in text
    page = f"http://127.0.0.1:{router.page.port}"
    assert status.workers[0].address in ask(page + "/").text
    assert "num_known_pages" in ask(page + "/status.json").json["workers"][0]
    assert status.workers[1].address in ask(page + "/status.txt").text
    metrics = ask(page + "/metrics").text
    assert f'rtp_jax:router_worker_sent_total{{worker="{status.workers[0].address}"}}' in metrics
    assert "rtp_jax:router_requests_total" in metrics
    assert main(["status", router.address]) == 0
    assert main(["status", router.address, "--json"]) == 0


def test_what_is_no_router_has_no_status(servers, capsys):
    assert main(["status", servers.start().address]) == 1
    assert "RTPJ-5105" in capsys.readouterr().err


def test_a_worker_that_only_prefills_generates_nothing(router, routed, workers):
    links = list(router.engine.workers.links.values())

    async def become(role: str, some):
        for link in some:
            await link.set_role(role)

    try:
        router.run(become("prefill", links[:1]))
        until(lambda: not links[0].generates)
        sent = links[0].num_sent
        for _ in range(3):
            routed.generate([5, 6], SamplingParams(max_tokens=2))
        assert links[0].num_sent == sent
    finally:
        router.run(become("both", links))
        until(lambda: all(link.generates for link in links))
