"""The Python API as a user of vLLM knows it: shapes of prompts, order, streams, errors by name."""

import asyncio
import dataclasses
import time

import pytest

from rtp_jax import SamplingParams
from rtp_jax.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    RtpError,
)
from tests.engine.workload import check_idle, small_engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def ids_of(outputs):
    """Token ids of the first completion of each output."""
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.smoke
@pytest.mark.capability("Engine.generate")
def test_prompt_shapes_mean_the_same(engine):
    ids = engine.tokenizer.encode("the page pool")
    one = engine.generate("the page pool", GREEDY)
    assert len(one) == 1
    assert one[0].finished
    for prompts in (
        ["the page pool"],
        {"prompt": "the page pool"},
        {"prompt_token_ids": ids},
        ids,
        [ids],
        [{"prompt_token_ids": ids}],
    ):
        assert ids_of(engine.generate(prompts, GREEDY)) == ids_of(one)
    assert one[0].prompt == "the page pool"
    assert one[0].prompt_token_ids == ids
    assert one[0].outputs[0].finish_reason == "length"
    assert len(one[0].outputs[0].token_ids) == 8
    assert engine.generate([], GREEDY) == []


def test_order_is_kept_and_params_are_matched(engine):
    prompts = [[i + 3] * (i % 7 + 1) for i in range(40)]
    params = [dataclasses.replace(GREEDY, max_tokens=i % 5 + 1) for i in range(40)]
    outputs = engine.generate(prompts, params)
    assert [o.prompt_token_ids for o in outputs] == prompts
    assert [len(ids) for ids in ids_of(outputs)] == [p.max_tokens for p in params]


def test_more_prompts_than_the_queue_holds(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache, max_waiting=2) as engine:
        assert len(engine.generate([[5, 6, 7]] * 50, GREEDY)) == 50
        check_idle(engine)


def test_timing_and_cache_are_reported(engine):
    prompt = list(range(3, 103))
    engine.generate(prompt, GREEDY)
    (again,) = engine.generate(prompt, GREEDY)
    assert again.num_cached_tokens == 96  # full pages before the last prompt token
    assert 0 <= again.timing.queue_s <= again.timing.first_token_s <= again.timing.total_s


def test_salt_separates_the_cache(engine):
    prompt = list(range(103, 203))
    first = {"prompt_token_ids": prompt, "cache_salt": "a"}
    engine.generate(first, GREEDY)
    assert engine.generate({**first, "cache_salt": "b"}, GREEDY)[0].num_cached_tokens == 0
    assert engine.generate(first, GREEDY)[0].num_cached_tokens == 96


@pytest.mark.capability("streaming")
def test_streams_add_up(engine):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=30, ignore_eos=True, n=2)
    (whole,) = engine.generate("Nothing flows back", params)
    deltas = list(engine.stream("Nothing flows back", params))
    assert deltas[-1].finished
    assert not any(output.finished for output in deltas[:-1])
    for index in range(2):
        parts = [c for output in deltas for c in output.outputs if c.index == index]
        assert "".join(part.text for part in parts) == whole.outputs[index].text
        assert [i for part in parts for i in part.token_ids] == whole.outputs[index].token_ids
    cumulative = list(engine.stream("Nothing flows back", params, output_kind="cumulative"))
    assert [c.token_ids for c in cumulative[-1].outputs] == [c.token_ids for c in whole.outputs]
    final = list(engine.stream("Nothing flows back", params, output_kind="final_only"))
    assert len(final) == 1


def test_closing_a_stream_frees_its_pages(engine):
    stream = engine.stream([5] * 50, SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    stream.close()
    wait_until_idle(engine)


def wait_until_idle(engine, seconds: float = 5.0) -> None:
    """Wait until nothing runs, then hold the invariants."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and engine.loads().num_open_requests:
        time.sleep(0.01)
    while time.monotonic() < until and engine.loads().num_running:
        time.sleep(0.01)
    check_idle(engine)


@pytest.mark.capability("logprobs")
def test_logprobs_are_raw_and_aligned(engine):
    params = dataclasses.replace(GREEDY, logprobs=3, prompt_logprobs=2, logprob_token_ids=[7, 8])
    biased = dataclasses.replace(params, logit_bias={11: 100.0})
    (output,) = engine.generate([5, 6, 7, 8], params)
    part = output.outputs[0]
    assert len(part.logprobs) == len(part.token_ids)
    for token_id, table in zip(part.token_ids, part.logprobs, strict=True):
        assert table[token_id].rank == 1
        assert {7, 8} <= set(table)
        assert 3 <= len(table) <= 6
    assert part.cumulative_logprob == pytest.approx(
        sum(t[i].logprob for i, t in zip(part.token_ids, part.logprobs, strict=True))
    )
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 4
    for token_id, table in zip([6, 7, 8], output.prompt_logprobs[1:], strict=True):
        assert token_id in table
    (forced,) = engine.generate([5, 6, 7, 8], biased)
    assert forced.outputs[0].token_ids == [11] * 8
    assert forced.outputs[0].logprobs[0][11].rank > 1


@pytest.mark.capability("scoring")
def test_score_agrees_with_prompt_logprobs(engine):
    prompt, continuations = list(range(20, 60)), [[61, 62, 63], [5]]
    scores = engine.score(prompt, continuations)
    params = dataclasses.replace(GREEDY, prompt_logprobs=0, max_tokens=1)
    for score, more in zip(scores, continuations, strict=True):
        (output,) = engine.generate([prompt + more], params)
        tables = output.prompt_logprobs[len(prompt) :]
        expected = [table[i].logprob for i, table in zip(more, tables, strict=True)]
        assert score.logprobs == pytest.approx(expected, abs=1e-5)
        assert score.token_ids == more
    greedy = ids_of(engine.generate([prompt], GREEDY))[0]
    assert engine.score(prompt, [greedy])[0].is_greedy


def test_chat_renders_the_template(engine):
    messages = [{"role": "user", "content": "hello"}]
    ids = engine.chat_prompt(messages)
    text = engine.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    (output,) = engine.chat(messages, GREEDY)
    assert output.prompt_token_ids == ids
    assert len(engine.chat([messages, messages], GREEDY)) == 2


@pytest.mark.capability("stop strings")
def test_stop_strings_cut_text_and_ids(engine):
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True, logprobs=1)
    (free,) = engine.generate("The scheduler", params)
    text = free.outputs[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    (cut,) = engine.generate("The scheduler", dataclasses.replace(params, stop=[stop]))
    part = cut.outputs[0]
    assert part.finish_reason == "stop"
    assert part.stop_reason == stop
    assert part.text == text[: text.index(stop)]
    assert part.token_ids == free.outputs[0].token_ids[: len(part.token_ids)]
    assert stop in engine.tokenizer.decode(part.token_ids)
    assert len(part.logprobs) == len(part.token_ids)


def test_errors_can_be_returned_in_their_place(engine):
    outputs = engine.generate([[5], [10**6], [6]], GREEDY, on_error="return")
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[1].error.id.startswith("RTPJ-")
    assert len(outputs[2].outputs[0].token_ids) == 8


@pytest.mark.capability("deadlines")
def test_deadlines_end_a_request_with_what_it_has(engine):
    params = SamplingParams(max_tokens=250, ignore_eos=True)
    outputs = engine.generate([[5] * 20] * 16, params, timeout_s=0.05, on_error="return")
    late = [output for output in outputs if output.error is not None]
    assert late
    for output in late:
        assert isinstance(output.error, DeadlineExceeded)
        assert output.outputs[0].finish_reason == "abort"
    wait_until_idle(engine)


def collect(engine, *args, **options):
    """Run `stream_async` to its end."""

    async def run():
        return [output async for output in engine.stream_async(*args, **options)]

    return asyncio.run(run())


@pytest.mark.capability("async API")
def test_async_kinds(engine):
    prompt = [5, 6, 7]
    expected = ids_of(engine.generate([prompt], GREEDY))[0]
    for kind in ("cumulative", "delta", "final_only"):
        outputs = collect(engine, prompt, dataclasses.replace(GREEDY, output_kind=kind))
        assert outputs[-1].finished
        if kind == "delta":
            assert [i for o in outputs for i in o.outputs[0].token_ids] == expected
        else:
            assert outputs[-1].outputs[0].token_ids == expected


@pytest.mark.capability("abort")
def test_abort_live_unknown_and_early(engine):
    async def run():
        stream = engine.stream_async(
            [5] * 10, SamplingParams(max_tokens=250, ignore_eos=True), request_id="a"
        )
        await anext(stream)
        with pytest.raises(AlreadyExists, match="RTPJ-4005"):
            await anext(engine.stream_async([5], GREEDY, request_id="a"))
        engine.abort("a")
        last = [output async for output in stream][-1]
        assert last.outputs[0].finish_reason == "abort"
        engine.abort(["a", "never seen", "later"])
        with pytest.raises(Cancelled):
            await anext(engine.stream_async([5], GREEDY, request_id="later"))
        assert [o async for o in engine.stream_async([5], GREEDY, request_id="later")]
        task = asyncio.ensure_future(
            anext(engine.stream_async([5] * 300, SamplingParams(max_tokens=10), request_id="b"))
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    wait_until_idle(engine)


def test_text_needs_a_tokenizer(tiny_model, program_cache):
    options = {"skip_tokenizer_init": True, "deterministic": True}  # one program, of 512 ids
    with small_engine(tiny_model, program_cache, **options) as engine:
        assert len(ids_of(engine.generate([[5, 6]], GREEDY))[0]) == 8
        for call in (
            lambda: engine.generate("a", GREEDY),
            lambda: engine.generate([[5]], dataclasses.replace(GREEDY, stop=["a"])),
            lambda: engine.chat([{"role": "user", "content": "a"}]),
        ):
            with pytest.raises(FailedPrecondition, match="RTPJ-1007"):
                call()
        check_idle(engine)


def test_a_closed_engine_refuses_and_closes_again(tiny_model, program_cache):
    engine = small_engine(tiny_model, program_cache)
    engine.close()
    engine.close()
    with pytest.raises(RtpError, match="RTPJ-400"):
        engine.generate([[5]], GREEDY)


@pytest.mark.capability("second start compiles nothing")
def test_a_second_start_compiles_nothing(tiny_model, program_cache):
    small_engine(tiny_model, program_cache).close()
    with small_engine(tiny_model, program_cache) as engine:
        assert engine.metrics.compiles == 0
        others = ["history", "state"]
        assert engine.metrics.program_cache_hits == len([*engine.info.buckets, *others])
