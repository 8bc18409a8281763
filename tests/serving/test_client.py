"""The client against a server around a fake engine: every method, both clients, errors rebuilt."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtp_jax import errors
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client import Client, partial_output
from rtp_jax.serving.client_messages import RequestOptions

FIVE = SamplingParams(max_tokens=5, temperature=0.0)


@pytest.mark.smoke
def test_generate(client):
    output = client.generate("hello", FIVE)
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("hello", "length")
    assert output.finished
    assert output.num_cached_tokens == 3
    assert output.timing.first_token_s is not None


@pytest.mark.smoke
@pytest.mark.capability("gRPC")
def test_stream_yields_what_is_new(client):
    outputs = list(client.stream("hello", FIVE))
    assert "".join(output.outputs[0].text for output in outputs) == "hello"
    assert [output.finished for output in outputs] == [False] * 4 + [True]


def test_token_ids_and_prompt_ids(client):
    output = client.generate([66, 67], FIVE, RequestOptions(return_prompt_token_ids=True))
    assert output.outputs[0].token_ids == [66, 67, 66, 67, 66]
    assert output.prompt_token_ids == [66, 67]


def test_chat(client, running):
    prompt = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"a": [1]}}
    assert client.generate(prompt, FIVE).outputs[0].text == "hihih"
    given = next(each for each in reversed(running.engine.seen) if "messages" in each)
    assert given["chat_template_kwargs"] == {"a": [1]}
    assert given["add_generation_prompt"] is True


@pytest.mark.capability("gRPC")
def test_the_small_methods(client):
    assert client.detokenize(client.tokenize("some text")) == "some text"
    assert client.model_info().name == "fake"
    assert client.model_info().default_sampling.max_tokens == 4
    assert client.server_info().protocol == "rtp_jax.generation.v1"
    assert client.loads().num_pages == 32
    scores = client.score("1 + 1 =", [" 2", [5, 6, 7]])
    assert [score.total_logprob for score in scores] == [-2.0, -3.0]
    assert client.is_serving()


def test_a_server_error_comes_back_as_it_was(client):
    with pytest.raises(errors.ResourceExhausted, match="RTPJ-2201 QUEUE_FULL") as raised:
        client.generate("busy", FIVE)
    assert (raised.value.retryable, raised.value.retry_after_s) == (True, 0.25)
    with pytest.raises(errors.InvalidArgument, match="RTPJ-2101 REQUEST_TOO_LARGE") as invalid:
        client.generate([255, 300], FIVE)
    assert (invalid.value.retryable, invalid.value.field) == (False, "prompt")


def test_partial_output_of_a_deadline(client):
    with pytest.raises(errors.DeadlineExceeded) as raised:
        client.generate("slow", SamplingParams(max_tokens=400), RequestOptions(timeout_s=0.2))
    partial = partial_output(raised.value)
    assert partial is not None
    assert partial.outputs[0].text.startswith("slow")
    assert partial.outputs[0].finish_reason == "abort"


def test_closing_a_stream_ends_the_request(client, running):
    stream = client.stream("slow", SamplingParams(max_tokens=400))
    next(stream)
    assert running.engine.live
    stream.close()
    until = time.monotonic() + 2
    while running.engine.live and time.monotonic() < until:
        time.sleep(0.01)
    assert not running.engine.live


def test_nobody_listens():
    with Client("127.0.0.1:1") as client, pytest.raises(errors.Unavailable, match="RTPJ-5101"):
        client.model_info()
    with Client("127.0.0.1:1") as client, pytest.raises(errors.Unavailable, match="RTPJ-5108"):
        client.wait_until_serving(0.2)


def test_of_several_servers_one_that_serves_is_enough(servers):
    first, second = servers.start(), servers.start()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # takes connections, and says nothing
        Client(f"127.0.0.1:{silent.getsockname()[1]}") as alone,
        Client([alone.address, "127.0.0.1:1", first.address, second.address]) as among,
    ):
        assert among.is_serving(timeout_s=1.0)
        first.run(first.server.stop(0))
        among.wait_until_serving(5.0)
        second.run(second.server.health.say(False, "for a test"))
        assert not among.is_serving(timeout_s=0.1)
        second.run(second.server.stop(0))
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            among.is_serving(timeout_s=0.1)
        began_s = time.monotonic()
        with pytest.raises(errors.Unavailable, match="RTPJ-5108"):
            alone.wait_until_serving(0.2)
        assert time.monotonic() - began_s < 3


def test_a_server_that_stops_cuts_its_calls_and_another_takes_them(servers):
    first, second = servers.start(), servers.start()
    params = SamplingParams(max_tokens=60)
    with (
        Client(first.address) as one,
        Client([first.address, second.address]) as both,
        ThreadPoolExecutor() as pool,
    ):
        alone, moved = (pool.submit(each.generate, "slow", params) for each in (one, both))
        while len(first.engine.live) < 2:
            time.sleep(0.01)
        first.run(first.server.stop(0))
        with pytest.raises(errors.Unavailable, match=r"RTPJ-510[13]"):
            alone.result(30)
        assert moved.result(30).outputs[0].finish_reason == "length"


def test_what_cannot_be_sent_is_said_at_the_call(client):
    with pytest.raises(errors.InvalidArgument, match="PROMPT_CANNOT_BE_SENT"):
        client.generate(3, FIVE)
    with pytest.raises(errors.InvalidArgument, match="PROMPT_CANNOT_BE_SENT"):
        client.score({"messages": []}, ["x"])
    for timeout_s in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(errors.InvalidArgument, match="TIMEOUT_INVALID"):
            client.generate("x", FIVE, RequestOptions(timeout_s=timeout_s))
    with pytest.raises(errors.InvalidArgument, match="TEMPLATE_KWARGS_NOT_JSON"):
        client.generate({"messages": [], "chat_template_kwargs": {"a": object()}}, FIVE)
    with pytest.raises(errors.InvalidArgument, match="NUMBER_TOO_LARGE_TO_SEND"):
        client.generate("x", SamplingParams(seed=2**64 - 1))


def test_the_async_client(running):
    async def use() -> list:
        async with AsyncClient(running.address) as client:
            whole = await client.generate("hello", FIVE)
            parts = [part async for part in client.stream("hello", FIVE)]
            ids = await client.tokenize("ab")
            assert await client.detokenize(ids) == "ab"
            assert (await client.model_info()).name == "fake"
            assert (await client.server_info()).version
            assert (await client.loads()).page_size == 16
            await client.abort(["nobody"])
            assert (await client.score("a", ["b"]))[0].logprobs == [-1.0]
            with pytest.raises(errors.FailedPrecondition):
                await client.generate("forbidden", FIVE)
            return [whole.outputs[0].text, "".join(part.outputs[0].text for part in parts)]

    assert asyncio.run(use()) == ["hello", "hello"]
