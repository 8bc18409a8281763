"""What the HTTP door answers, on the built-in model: the tokens and counts of the gRPC door."""

import asyncio
import json
import socket
import time

import aiohttp
import grpc as grpc_library
import pytest

from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from rtp_jax.wire import generation_pb2 as pb
from tests.engine.workload import check_idle
from tests.serving.http_client import ask, ask_async, read_events, said
from tests.serving.started import Running

SUM = "Question: What is 27 + 48?\nAnswer:"
GREEDY = {"temperature": 0, "max_tokens": 8}
CHAT = {"messages": [{"role": "user", "content": "What is 27 + 48?"}], **GREEDY}


@pytest.fixture(scope="module")
def url(built_in: Running) -> str:
    return built_in.url + "/v1"


@pytest.fixture(scope="module")
def grpc(built_in: Running):
    with Client(built_in.address) as client:
        yield client


def usage_of(built_in: Running, prompt: str) -> pb.Usage:
    """Ask the gRPC door how many tokens there are."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=8)
    request = pb.GenerateRequest(text=prompt, sampling=sampling)
    with grpc_library.insecure_channel(built_in.address) as channel:
        generate = channel.unary_unary("/rtp_jax.generation.v1.Generation/Generate")
        return pb.GenerateResponse.FromString(generate(request.SerializeToString())).usage


def greedy(**options) -> SamplingParams:
    return SamplingParams(**(GREEDY | options))


@pytest.mark.capability("HTTP")
def test_a_completion_is_what_grpc_says(url, grpc, built_in):
    prompts = [SUM, "Question: Repeat: red apple\nAnswer:", "def f(x):", SUM + " 75\n"]
    answer = ask(f"{url}/completions", {"model": "rtp-tiny", "prompt": prompts, **GREEDY}).json
    expected = [grpc.generate(prompt, greedy()) for prompt in prompts]
    counts = [usage_of(built_in, prompt) for prompt in prompts]
    assert [each["text"] for each in answer["choices"]] == [e.outputs[0].text for e in expected]
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2, 3]
    reasons = [each["finish_reason"] for each in answer["choices"]]
    assert reasons == [each.outputs[0].finish_reason for each in expected]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == sum(each.prompt_tokens for each in counts)
    assert usage["completion_tokens"] == sum(each.output_tokens for each in counts)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (answer["object"], answer["model"]) == ("text_completion", "rtp-tiny")


@pytest.mark.capability("HTTP")
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_says_the_same_as_a_whole_answer(url, chat):
    path, body = ("chat/completions", CHAT) if chat else ("completions", {"prompt": SUM, **GREEDY})
    whole = ask(f"{url}/{path}", body).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = ask(f"{url}/{path}", body | options)
    assert stream.status == 200
    *pieces, last = stream.events
    first = whole["choices"][0]
    assert said(pieces) == (first["message"]["content"] if chat else first["text"])
    assert [p["choices"][0]["finish_reason"] for p in pieces if p["choices"][0]["finish_reason"]]
    assert all(piece["usage"] is None for piece in pieces)
    assert last["choices"] == []
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    kind = "chat.completion.chunk" if chat else "text_completion"
    assert {piece["object"] for piece in stream.events} == {kind}
    assert len({piece["id"] for piece in stream.events}) == 1
    if chat:
        roles = [piece["choices"][0]["delta"].get("role") for piece in pieces]
        assert roles == ["assistant"] + [None] * (len(pieces) - 1)
    assert "usage" not in ask(f"{url}/{path}", body | {"stream": True}).events[-1]


def test_a_chat_is_what_grpc_says(url, grpc):
    answer = ask(f"{url}/chat/completions", CHAT).json
    expected = grpc.generate({"messages": CHAT["messages"]}, greedy())
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected.outputs[0].text,
    }
    assert answer["usage"]["completion_tokens"] == len(expected.outputs[0].token_ids)
    parts = [{"type": "text", "text": "What is 27 + 48?"}]
    again = CHAT | {"messages": [{"role": "user", "content": parts}]}
    assert ask(f"{url}/chat/completions", again).json["choices"] == answer["choices"]


def test_a_chat_goes_on_with_a_message(url):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "27 + 48 ="}]
    body = CHAT | {"messages": messages, "return_token_ids": True}
    on = ask(f"{url}/chat/completions", body | {"continue_final_message": True}).json
    new = ask(f"{url}/chat/completions", body | {"add_generation_prompt": False}).json
    ids = [each["choices"][0]["prompt_token_ids"] for each in (on, new)]
    assert ids[1][: len(ids[0])] == ids[0]
    assert len(ids[1]) > len(ids[0])  # the message was ended


def test_token_ids_are_a_prompt(url, grpc):
    ids = grpc.tokenize(SUM)
    text = ask(f"{url}/completions", {"prompt": SUM, **GREEDY}).json["choices"][0]["text"]
    for prompt in (ids, [ids]):
        body = {"prompt": prompt, "return_token_ids": True, **GREEDY}
        choice = ask(f"{url}/completions", body).json["choices"][0]
        assert choice["text"] == text
        assert choice["prompt_token_ids"] == ids
        assert grpc.detokenize(choice["token_ids"]) == text


def test_an_echo_with_logprobs_scores_a_text(url, grpc):
    text = "Question: Ä 世?\nAnswer: 世界"
    scored = {"prompt": text, "echo": True, "logprobs": 2, "max_tokens": 0, "temperature": 0}
    answer = ask(f"{url}/completions", scored).json
    choice, ids = answer["choices"][0], grpc.tokenize(text)
    expected = grpc.generate(text, greedy(max_tokens=1, prompt_logprobs=2)).prompt_logprobs
    columns = choice["logprobs"]
    assert choice["text"] == text
    assert answer["usage"]["completion_tokens"] == 0
    assert columns["token_logprobs"][0] is columns["top_logprobs"][0] is None
    found = columns["token_logprobs"][1:]
    wanted = [each[i].logprob for i, each in zip(ids[1:], expected[1:], strict=True)]
    assert found == pytest.approx(wanted, abs=1e-4)
    for token, logprob, top in zip(
        columns["tokens"][1:], found, columns["top_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
    whole = [t for t in columns["tokens"] if not t.startswith("bytes:")]
    starts = [
        o for t, o in zip(columns["tokens"], columns["text_offset"], strict=True) if t in whole
    ]
    assert all(text[at : at + len(t)] == t for t, at in zip(whole, starts, strict=True))
    assert len(whole) < len(ids)  # a character of several tokens was among them


def test_an_echo_is_followed_by_the_answer(url):
    body = {"prompt": SUM, "echo": True, "logprobs": 1, **GREEDY}
    plain = {"prompt": SUM, "logprobs": 1, **GREEDY}
    both, alone = (ask(f"{url}/completions", each).json["choices"][0] for each in (body, plain))
    assert both["text"] == SUM + alone["text"]
    num = len(alone["logprobs"]["tokens"])
    assert both["logprobs"]["tokens"][-num:] == alone["logprobs"]["tokens"]
    assert both["logprobs"]["text_offset"][-num] == len(SUM)
    stream = ask(f"{url}/completions", {"prompt": SUM, "echo": True, "stream": True, **GREEDY})
    assert said(stream.events) == both["text"]
    ids = ask(f"{url}/completions", body | {"return_token_ids": True}).json["choices"][0]
    again = ask(f"{url}/completions", body | {"prompt": ids["prompt_token_ids"]})
    assert again.json["choices"][0]["text"] == both["text"]


def test_logprobs_of_a_chat(url):
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    choice = ask(f"{url}/chat/completions", body).json["choices"][0]
    content = choice["logprobs"]["content"]
    text = choice["message"]["content"]
    assert "".join(each["token"] for each in content) == text + "<|end|>"  # as it was sampled
    for each in content:
        assert bytes(each["bytes"]).decode() == each["token"]
        assert each["top_logprobs"][0]["token"] == each["token"]  # greedy
        assert len(each["top_logprobs"]) == 2
    streamed = ask(f"{url}/chat/completions", body | {"stream": True}).events
    found = [e for s in streamed for e in (s["choices"][0]["logprobs"] or {}).get("content", ())]
    assert [each["token"] for each in found] == [each["token"] for each in content]
    bare = ask(f"{url}/chat/completions", CHAT | {"logprobs": True}).json["choices"][0]
    assert [each["top_logprobs"] for each in bare["logprobs"]["content"]] == [[]] * len(content)


def test_prompt_logprobs(url, grpc):
    body = {"prompt": SUM, "prompt_logprobs": 1, **GREEDY}
    found = ask(f"{url}/completions", body).json["choices"][0]["prompt_logprobs"]
    ids = grpc.tokenize(SUM)
    assert found[0] is None
    assert all(str(i) in each for i, each in zip(ids[1:], found[1:], strict=True))
    assert {each["rank"] for each in found[1].values()} >= {1}


def test_options_reach_the_sampler(url, grpc):
    def tokens(**options) -> list[int]:
        body = {"prompt": SUM, "return_token_ids": True, **GREEDY, **options}
        return ask(f"{url}/completions", body).json["choices"][0]["token_ids"]

    plain = tokens()
    assert tokens(logit_bias={"300": 100}, ignore_eos=True) == [300] * 8
    assert plain[0] not in tokens(logit_bias={str(plain[0]): -100})
    assert tokens(allowed_token_ids=[301], ignore_eos=True, max_tokens=3) == [301] * 3
    assert tokens(stop_token_ids=[plain[1]], min_tokens=0) == plain[:2]
    drawn = {"temperature": 1.0, "seed": 7, "top_k": 20, "min_p": 0.01, "max_tokens": 8}
    params = SamplingParams(**drawn)
    assert tokens(**drawn) == grpc.generate(SUM, params).outputs[0].token_ids


def test_stop_strings(url):
    body = {"prompt": SUM, "temperature": 0, "max_tokens": 24, "stop": ["\n"]}
    choice = ask(f"{url}/completions", body).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "\n" not in choice["text"]
    assert choice["stop_reason"] in ("\n", None)


def test_several_completions_of_several_prompts(url):
    body = {"prompt": ["a", "b"], "n": 3, "seed": 1, "max_tokens": 5, "ignore_eos": True}
    whole = ask(f"{url}/completions", body | {"best_of": 3}).json
    assert [each["index"] for each in whole["choices"]] == [*range(6)]
    assert whole["usage"]["completion_tokens"] == 30
    assert whole["usage"]["prompt_tokens"] == 2
    events = ask(f"{url}/completions", body | {"stream": True}).events
    texts = [said(events, index) for index in range(6)]
    assert texts == [each["text"] for each in whole["choices"]]


def test_what_is_cached_is_counted_and_a_salt_keeps_it_apart(url):
    body = {"prompt": [40 + i for i in range(64)], "max_tokens": 1}

    def cached(**more) -> tuple[int, dict[str, int]]:
        usage = ask(f"{url}/completions", body | more).json["usage"]
        details = usage["prompt_tokens_details"]
        return details["cached_tokens"], details["cached_tokens_by_tier"]

    assert cached(cache_salt="mine") == (0, {})
    number, by_tier = cached(cache_salt="mine")
    assert number >= 48
    assert by_tier == {"device": number}
    assert cached(cache_salt="yours") == (0, {})


def test_the_model_has_defaults_of_its_own(url, built_in_engine):
    info = built_in_engine.info
    answer = ask(f"{url}/completions", {"prompt": SUM, "ignore_eos": True}).json
    assert answer["usage"]["completion_tokens"] == info.default_sampling_params.max_tokens == 16
    chat = {"messages": CHAT["messages"], "temperature": 0, "ignore_eos": True}
    long = [{"role": "user", "content": "3 " * 450}]
    usage = ask(f"{url}/chat/completions", chat | {"messages": long}).json["usage"]
    assert usage["total_tokens"] == info.max_model_len


@pytest.mark.parametrize(
    ("path", "body", "id"),
    [
        ("chat/completions", {"messages": []}, "RTPJ-3403"),
        ("chat/completions", {"messages": "hi"}, "RTPJ-3403"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "RTPJ-3403"),
        ("completions", {"prompt": "\ud800"}, "RTPJ-3312"),
        ("completions", {"prompt": [1, True]}, "RTPJ-1004"),
        ("completions", {"prompt": [10**30]}, "RTPJ-2002"),
        ("completions", {"prompt": []}, "RTPJ-2001"),
        ("completions", {"prompt": "a", "priority": "x"}, "RTPJ-1003"),
        ("completions", {"prompt": "a", "cache_salt": 5}, "RTPJ-1003"),
    ],
)
def test_what_the_engine_refuses(url, path, body, id):
    answer = ask(f"{url}/{path}", body)
    assert (answer.status, answer.error["code"]) == (400, id)


@pytest.mark.capability("HTTP")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_a_client_that_goes_away_frees_its_pages(built_in, built_in_engine, stream, num_prompts):
    body = {"prompt": [SUM] * num_prompts, "max_tokens": 900, "ignore_eos": True, "stream": stream}

    aborted = built_in_engine.metrics.request_success["abort"]

    async def read() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{built_in.url}/v1/completions", json=body) as response,
        ):
            await response.read()

    async def leave() -> None:
        reading = asyncio.ensure_future(read())
        while built_in_engine.loads().num_running < num_prompts:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # something has been sent
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(leave())
    until = time.monotonic() + 10
    while built_in_engine.loads().num_open_requests and time.monotonic() < until:
        time.sleep(0.01)
    check_idle(built_in_engine)
    assert built_in_engine.metrics.request_success["abort"] == aborted + num_prompts
    assert not built_in.service.live_ids


def test_who_leaves_changes_nothing_for_the_others(built_in, built_in_engine):
    prompts = [[20 + i % 5] * 30 + [*range(30, 31 + i)] for i in range(40)]
    params = [SamplingParams(max_tokens=24, ignore_eos=True, seed=i) for i in range(40)]
    alone = built_in_engine.generate(prompts, params, use_tqdm=False)

    async def follow(number: int, session: aiohttp.ClientSession) -> list[int]:
        body = {"prompt": prompts[number], "max_tokens": 24, "ignore_eos": True, "seed": number}
        body |= {"temperature": 1, "stream": True, "return_token_ids": True}
        found: list[int] = []
        async with session.post(f"{built_in.url}/v1/completions", json=body) as response:
            async for line in response.content:
                if number % 2 and len(found) > number // 4:
                    response.close()
                    break
                if line.startswith(b"data: {"):
                    found += json.loads(line[6:])["choices"][0]["token_ids"]
        return found

    async def follow_all() -> list[list[int]]:
        connections = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connections) as session:
            return await asyncio.gather(*(follow(i, session) for i in range(40)))

    for number, found in enumerate(asyncio.run(follow_all())):
        whole = alone[number].outputs[0].token_ids
        assert found == whole[: len(found)]
        assert number % 2 or found == whole
    check_idle(built_in_engine)


def test_a_slow_reader_stalls_nobody_and_gets_everything(built_in, built_in_engine):
    """It asks for more than the buffers of a connection hold, and does not read at first."""
    body = {"prompt": [SUM] * 8, "max_tokens": 200, "ignore_eos": True, "stream": True}
    body |= {"logprobs": 20, "temperature": 0}

    async def run() -> tuple[str, float]:
        asked = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        data = json.dumps(body).encode()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", built_in.http.port))
            head = f"{asked}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(slow, head.encode() + data)
            while not built_in_engine.loads().num_running:
                await asyncio.sleep(0.005)
            quick = await ask_async(f"{built_in.url}/v1/completions", {"prompt": SUM, **GREEDY})
            assert quick.status == 200
            while built_in_engine.loads().num_open_requests:  # the engine does not wait for it
                await asyncio.sleep(0.01)
            found = b""
            while part := await loop.sock_recv(slow, 1 << 20):
                found += part
        return found.decode()

    text = asyncio.run(asyncio.wait_for(run(), 60))
    text = unchunked(text.partition("\r\n\r\n")[2])
    events = read_events(text)
    num_tokens = sum(
        len(choice["logprobs"]["tokens"])
        for event in events
        for choice in event["choices"]
        if choice["logprobs"]
    )
    assert num_tokens == 8 * 200
    assert len(events) < num_tokens  # some came together


def unchunked(body: str) -> str:
    """Undo HTTP's chunks; the text is ASCII."""
    found = ""
    while body:
        size, _, body = body.partition("\r\n")
        found, body = found + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return found
