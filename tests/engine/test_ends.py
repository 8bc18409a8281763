"""Every request ends, whatever happens to it, to others and to the threads."""

import asyncio
import dataclasses
import threading
import time

import pytest

from rtp_jax import SamplingParams
from rtp_jax.engine.requests import Prompt
from rtp_jax.errors import Cancelled, Internal, InvalidArgument, RtpError, Unavailable
from rtp_jax.runner.runner import Runner
from tests.engine.test_faults import Fault
from tests.engine.workload import check_idle, small_engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
LONG = dataclasses.replace(GREEDY, max_tokens=250)


def wait_until_idle(engine) -> None:
    """Wait until nothing is live, then hold the invariants."""
    until = time.monotonic() + 10
    while time.monotonic() < until and engine._parts.scheduler.has_work:
        time.sleep(0.01)
    check_idle(engine)


def test_a_suspect_that_is_aborted_stops_nobody(engine, monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    runner, failures = engine._parts.runner, []
    execute = Runner.execute

    def fails_once(batch):
        if not failures:
            failures.append(batch)
            engine.abort("suspect")  # in the inbox before the suspect has run alone
            raise Fault("injected")
        return execute(runner, batch)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "execute", fails_once)
        stream = engine.stream([5] * 9, LONG, request_id="suspect")
        (other,) = engine.generate([[6] * 9], GREEDY, use_tqdm=False)
        assert other.error is None
        assert [output.outputs[0].finish_reason for output in stream][-1] == "abort"
    wait_until_idle(engine)


def test_a_scheduler_that_fails_again_and_again_blames_no_innocent_for_long(engine, monkeypatch):
    scheduler, calls = engine._parts.scheduler, []
    schedule = scheduler.schedule

    def fails_together(now_s, *, only=None):
        calls.append(only)
        if only is None and 2 < len(calls) < 60:
            raise Fault("injected")
        return schedule(now_s, only=only)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "schedule", fails_together)
        outputs = engine.generate([[5] * 9] * 3, LONG, on_error="return", use_tqdm=False)
        assert all(isinstance(output.error, Internal) for output in outputs)
        assert len(calls) < 60
    wait_until_idle(engine)


def test_a_fault_in_a_reader_or_a_record_ends_no_thread(tiny_model, program_cache, tmp_path):
    with small_engine(tiny_model, program_cache, dump_failed=str(tmp_path)) as engine:
        delivery = engine._parts.delivery

        class Broken:
            """A reader that fails."""

            def put(self, delta):
                raise Fault("injected")

            def flush(self):
                raise Fault("injected")

        request = engine._submission.builder.build(Prompt(None, (5, 6)), GREEDY)
        engine._submission.submit(request, Broken())
        assert engine.generate([[7, 8]], GREEDY, use_tqdm=False)[0].error is None
        assert delivery.alive
        assert engine.alive


@pytest.mark.parametrize("deadline_s", [float("nan"), float("inf"), "soon", True])
def test_deadlines_are_finite_times(engine, deadline_s):
    async def run():
        return [o async for o in engine.stream_async([5], GREEDY, deadline_s=deadline_s)]

    with pytest.raises(InvalidArgument, match="deadline_s"):
        asyncio.run(run())


def test_salts_and_ids_are_text(engine):
    for prompt, options in (
        ({"prompt_token_ids": [5], "cache_salt": "\ud800"}, {}),
        ([5], {"request_id": "\ud800"}),
    ):
        with pytest.raises(InvalidArgument, match="surrogates"):
            engine.stream(prompt, GREEDY, **options)


def test_an_id_may_be_used_again_at_once(engine):
    async def run():
        for _ in range(5):
            first = engine.stream_async([5] * 9, LONG, request_id="again")
            await anext(first)
            engine.abort("again")
            async for output in first:
                reason = output.outputs[0].finish_reason
            assert reason == "abort"
            second = engine.stream_async([5] * 9, GREEDY, request_id="again")
            outputs = [output async for output in second]
            assert outputs[-1].outputs[0].finish_reason == "length"
            assert len(outputs[-1].outputs[0].token_ids) == 8

    asyncio.run(run())
    wait_until_idle(engine)


def test_a_dropped_stream_gives_its_request_up(engine):
    engine.stream([5] * 9, LONG)  # never read
    wait_until_idle(engine)
    stream = engine.stream([5] * 9, LONG)
    next(stream)
    del stream
    wait_until_idle(engine)


def test_a_closed_loop_ends_its_requests_and_no_thread(engine):
    async def leave():
        stream = engine.stream_async([5] * 9, LONG)
        await anext(stream)
        return stream  # the loop is closed before it is read

    asyncio.run(leave())
    assert engine.generate([[5]], GREEDY, use_tqdm=False)[0].error is None
    assert engine.alive
    wait_until_idle(engine)


def test_prompt_logprobs_of_n_completions_come_once(engine):
    params = SamplingParams(n=3, max_tokens=4, prompt_logprobs=1, seed=1)
    (output,) = engine.generate([[5, 6, 7, 8]], params, use_tqdm=False)
    assert len(output.prompt_logprobs) == 4
    assert output.prompt_logprobs[0] is None


def test_closing_ends_what_is_open(tiny_model, program_cache):
    engine = small_engine(tiny_model, program_cache)
    results: list[object] = []

    def work():
        try:
            results.append(engine.generate([[5] * 9] * 40, LONG, on_error="return", use_tqdm=False))
        except RtpError as error:
            results.append(error)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    time.sleep(0.2)
    engine.close()
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
    assert len(results) == 4
    for outputs in results:
        assert isinstance(outputs, list)
        assert all(isinstance(o.error, Unavailable) for o in outputs if o.error)
    assert any(o.error for outputs in results for o in outputs)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_answers_everybody(tiny_model, program_cache, caplog):
    caplog.set_level("CRITICAL")
    engine = small_engine(tiny_model, program_cache)
    engine._parts.loop._recover = lambda _: (_ for _ in ()).throw(SystemExit)
    engine._parts.runner.execute = lambda _: (_ for _ in ()).throw(Fault("injected"))
    (output,) = engine.generate([[5] * 9], LONG, on_error="return", use_tqdm=False)
    assert isinstance(output.error, Unavailable)
    assert output.error.id == "RTPJ-4007"
    engine._parts.loop._thread.join(10)
    assert not engine.alive
    with pytest.raises(Unavailable, match="RTPJ-4004"):
        engine.generate([[5]], GREEDY, use_tqdm=False)
    engine.close()


def test_early_aborts_are_forgotten_in_their_order(engine):
    engine.abort([f"junk-{i}" for i in range(300)] + ["wanted"])
    with pytest.raises(Cancelled):
        engine.stream([5], GREEDY, request_id="wanted")
    list(engine.stream([5], GREEDY, request_id="wanted"))
    refused = engine.metrics.requests_refused
    assert refused > 0


def test_a_folder_of_programs_that_cannot_be_made(tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RtpError, match="RTPJ-4108"):
        small_engine(tiny_model, tmp_path / "file" / "programs")
