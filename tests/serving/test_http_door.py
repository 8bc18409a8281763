"""The HTTP door around a fake engine: who may ask, what is refused and how, what is counted."""

import asyncio
import json
import logging
import socket
import sys
import time

import pytest

from rtp_jax.config import ServerConfig
from rtp_jax.errors import FailedPrecondition, InvalidArgument, Kind
from rtp_jax.metrics import Metrics
from rtp_jax.serving import http_door
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.health import Health
from rtp_jax.serving.http_door import HttpDoor
from rtp_jax.serving.status import CODE_OF, HTTP_OF
from tests.serving.certificates import make_authority, make_certificate
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_client import Answer, ask, read_events
from tests.serving.started import Running, Servers

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def running():
    started = Servers()
    yield started.start(http_port=0, http_max_body_bytes=20_000)
    started.stop()


def post(running: Running, path: str, body: object, **options) -> Answer:
    """Post to a path, if it is one."""
    return ask(running.url + path, body, **options)


def test_what_can_be_looked_at(running):
    models = ask(running.url + "/v1/models").json
    assert models["object"] == "list"
    assert models["data"][0] == ask(running.url + "/v1/models/fake").json
    assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == ("fake", 512)
    assert ask(running.url + "/v1/models/x/y").error["code"] == "RTPJ-5012"
    assert ask(running.url + "/health").status == 200
    assert ask(running.url + "/health", method="HEAD").status == 200
    assert ask(running.url + "/version").json["version"]


def test_answers_are_counted(running):
    post(running, COMPLETIONS, {"prompt": "hello"})
    post(running, COMPLETIONS, {"prompt": "hello", "n": 0})
    ask(running.url + "/../secret")
    page = ask(running.url + "/metrics")
    assert page.headers["Content-Type"].startswith("text/plain")
    counts = [line for line in page.text.splitlines() if 'method="http ' in line]
    for code in ("OK", "INVALID_ARGUMENT"):
        labels = f'{{code="{code}",method="http /v1/completions",'
        assert any(labels in line for line in counts), counts
    assert any('method="http unknown"' in line for line in counts)


LONG = "x" * 30_000
BAD = [  # path, body, status, id, field
    (COMPLETIONS, b"{", 400, "RTPJ-5405", None),
    (COMPLETIONS, b"[]", 400, "RTPJ-5405", None),
    (COMPLETIONS, b'{"prompt": "a", "prompt": "b"}', 400, "RTPJ-5405", None),
    (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, "RTPJ-5405", None),
    (COMPLETIONS, b'{"prompt": "\xff"}', 400, "RTPJ-5405", None),
    (COMPLETIONS, b"[" * 15_000, 400, "RTPJ-5405", None),
    (COMPLETIONS, b'{"a": ' * 40 + b"1" + b"}" * 40, 400, "RTPJ-5405", None),
    (COMPLETIONS, b'{"temperature": ' + b"9" * 5000 + b"}", 400, "RTPJ-5405", None),
    (COMPLETIONS, {"prompt": LONG}, 413, "RTPJ-5404", None),
    (COMPLETIONS, {}, 400, "RTPJ-5407", "prompt"),
    (COMPLETIONS, {"prompt": {"prompt_token_ids": [1]}}, 400, "RTPJ-5407", "prompt"),
    (COMPLETIONS, {"prompt": [["a"], 5]}, 400, "RTPJ-5407", "prompt"),
    (COMPLETIONS, {"prompt": []}, 400, "RTPJ-2101", "prompt"),
    (COMPLETIONS, {"prompt": [1] * 600}, 400, "RTPJ-5006", "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 1025}, 400, "RTPJ-5006", "prompt"),
    (COMPLETIONS, {"prompt": "a", "model": 5}, 400, "RTPJ-5407", "model"),
    (COMPLETIONS, {"prompt": "a", "model": "gpt"}, 404, "RTPJ-5012", "model"),
    (COMPLETIONS, {"prompt": "a", "temprature": 1}, 400, "RTPJ-1001", "temprature"),
    (COMPLETIONS, {"prompt": "a", "output_kind": "delta"}, 400, "RTPJ-1001", "output_kind"),
    (COMPLETIONS, {"prompt": "a", "temperature": 9}, 400, "RTPJ-1003", "temperature"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 400, "RTPJ-1003", "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "logprobs": True}, 400, "RTPJ-1003", "logprobs"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 21}, 400, "RTPJ-1003", "logprobs"),
    (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 3}, 400, "RTPJ-5407", "best_of"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, 400, "RTPJ-5406", "suffix"),
    (COMPLETIONS, {"prompt": "a", "stream": "yes"}, 400, "RTPJ-5407", "stream"),
    (COMPLETIONS, {"prompt": "a", "echo": 1}, 400, "RTPJ-5407", "echo"),
    (COMPLETIONS, {"prompt": "a", "stream_options": {"a": 1}}, 400, "RTPJ-5407", "stream_options"),
    (
        COMPLETIONS,
        {"prompt": "a", "stream": True, "stream_options": {"a": 1}},
        400,
        "RTPJ-1001",
        "a",
    ),
    (
        COMPLETIONS,
        {"prompt": "a", "stream": True, "prompt_logprobs": 1},
        400,
        "RTPJ-5407",
        "stream",
    ),
    (COMPLETIONS, {"prompt": "a", "logit_bias": [5]}, 400, "RTPJ-5407", "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 5}}, 400, "RTPJ-5407", "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"5": "x"}}, 400, "RTPJ-1003", "logit_bias[5]"),
    (COMPLETIONS, {"prompt": "busy"}, 429, "RTPJ-2201", None),
    (COMPLETIONS, {"prompt": "forbidden"}, 400, "RTPJ-4004", None),
    (COMPLETIONS, {"prompt": "bug"}, 500, "RTPJ-5001", None),
    (COMPLETIONS, {"prompt": "boom", "max_tokens": 9}, 500, "RTPJ-4101", None),
    (COMPLETIONS, {"prompt": ["fine", "busy"]}, 429, "RTPJ-2201", None),
    (CHAT, {**HI, "tools": [{"type": "function"}]}, 400, "RTPJ-5406", "tools"),
    (CHAT, {**HI, "response_format": {"type": "json_object"}}, 400, "RTPJ-5406", "response_format"),
    (CHAT, {**HI, "store": True}, 400, "RTPJ-5406", "store"),
    (CHAT, {**HI, "prompt": "a"}, 400, "RTPJ-1001", "prompt"),
    (CHAT, {**HI, "logprobs": 3}, 400, "RTPJ-5407", "logprobs"),
    (CHAT, {**HI, "top_logprobs": 3}, 400, "RTPJ-5407", "top_logprobs"),
    (CHAT, {**HI, "max_tokens": 3, "max_completion_tokens": 4}, 400, "RTPJ-5407", None),
    (CHAT, {**HI, "chat_template_kwargs": []}, 400, "RTPJ-5407", "chat_template_kwargs"),
    (CHAT, {**HI, "continue_final_message": 1}, 400, "RTPJ-5407", "continue_final_message"),
    ("/v1/embeddings", {"input": "a"}, 404, "RTPJ-5403", None),
    ("/v1/models", {"a": 1}, 404, "RTPJ-5403", None),
]


@pytest.mark.capability("HTTP")
@pytest.mark.parametrize(("path", "body", "status", "id", "field"), BAD)
def test_what_is_refused(running, path, body, status, id, field):
    headers = {"Content-Type": "application/json"}
    answer = post(running, path, body, headers=headers)
    error = answer.error
    assert (answer.status, error["code"]) == (status, id), error
    assert error["message"].startswith(id)
    assert set(error) == {"message", "type", "param", "code"}
    assert field is None or error["param"] == field
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    assert "secret" not in error["message"]
    assert not running.engine.live


def test_what_asks_for_nothing_is_fine(running):
    idle = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    idle |= {"seed": None, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    assert post(running, CHAT, HI | idle).status == 200
    assert post(running, COMPLETIONS, {"prompt": "a", "suffix": "", "stop": None}).status == 200


def test_a_body_must_say_that_it_is_json(running):
    """Else a page in somebody's browser could ask this door without permission."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = post(running, COMPLETIONS, b'{"prompt": "a"}', headers={"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (400, "RTPJ-5405")
    asked = post(running, COMPLETIONS, {"prompt": "a"}, method="OPTIONS")
    assert asked.status == 404
    assert not [name for name in asked.headers if name.startswith("Access-Control")]


def test_a_compressed_body_is_not_unpacked(running):
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert post(running, COMPLETIONS, b"\x1f\x8b" + b"0" * 50, headers=headers).status == 400


def test_what_is_passed_on(running):
    body = {"prompt": "hello", "cache_salt": "s", "priority": -3, "top_k": 5, "min_p": 0.5}
    post(running, COMPLETIONS, body | {"logit_bias": {"7": 1}, "stop_token_ids": [9]})
    seen = running.engine.seen[-1]
    assert (seen["cache_salt"], seen["priority"]) == ("s", -3)
    params = seen["params"]
    assert (params.top_k, params.min_p, params.max_tokens) == (5, 0.5, 4)  # 4: the model's own
    assert (params.logit_bias, params.stop_token_ids) == ({7: 1.0}, (9,))
    post(running, CHAT, HI | {"chat_template_kwargs": {"a": 1}, "max_completion_tokens": 7})
    assert running.engine.seen[-2]["chat_template_kwargs"] == {"a": 1}
    assert running.engine.seen[-2]["add_generation_prompt"]
    assert running.engine.seen[-1]["params"].max_tokens == 7


def test_a_request_has_an_id_and_a_deadline(running):
    headers = {"X-Request-Id": "mine", "X-Request-Timeout-Ms": "5000"}
    answer = post(running, COMPLETIONS, {"prompt": "hello"}, headers=headers)
    assert answer.headers["X-Request-ID"] == "mine"
    assert answer.json["id"] == "cmpl-mine"
    seen = running.engine.seen[-1]
    assert seen["id"].startswith("mine-")
    assert 0 < seen["deadline_s"] - time.monotonic() < 5
    late = {"X-Request-Timeout-Ms": "50"}
    answer = post(running, COMPLETIONS, {"prompt": "slow", "max_tokens": 99}, headers=late)
    assert (answer.status, answer.error["code"]) == (504, "RTPJ-4001")
    for name, value in [("X-Request-Timeout-Ms", "soon"), ("X-Request-Id", "a b")]:
        assert post(running, COMPLETIONS, {"prompt": "a"}, headers={name: value}).status == 400


def test_an_error_within_a_stream(running):
    body = {"prompt": "boom", "max_tokens": 9, "stream": True}
    answer = post(running, COMPLETIONS, body)
    assert answer.status == 200
    assert [each["choices"][0]["text"] for each in answer.events[:-1]] == ["b", "o"]
    assert answer.events[-1]["error"]["code"] == "RTPJ-4101"
    early = post(running, COMPLETIONS, {"prompt": "busy", "stream": True})
    assert (early.status, early.error["code"]) == (429, "RTPJ-2201")


def test_prompts_are_not_logged(running, caplog):
    caplog.set_level(logging.DEBUG)
    post(running, COMPLETIONS, {"prompt": "s3cret", "n": 0})
    post(running, COMPLETIONS, {"prompt": "s3cret", "s3cret": 1})
    assert "RTPJ-1001 OPTION_UNKNOWN" in caplog.text
    assert "s3cret" not in caplog.text


def test_while_it_warms_up(servers):
    running = servers.start(engine=False, http_port=0)
    for path in ("/health", "/v1/models"):
        answer = ask(running.url + path)
        assert (answer.status, answer.error["type"]) == (503, "server_error")
        assert int(answer.headers["Retry-After"]) >= 1
    assert ask(running.url + "/health").error["code"] == "RTPJ-5410"  # NOT_SERVING
    assert post(running, COMPLETIONS, {"prompt": "a"}).error["code"] == "RTPJ-5010"
    assert ask(running.url + "/version").status == 200


def test_without_a_tokenizer(servers):
    running = servers.start(FakeEngine(with_tokenizer=False), http_port=0)
    body = {"prompt": [70, 71], "max_tokens": 2, "return_token_ids": True, "logprobs": 0}
    choice = post(running, COMPLETIONS, body).json["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("", [70, 71])


@pytest.mark.capability("TLS and tokens")
def test_tokens(servers, tmp_path):
    file = tmp_path / "tokens"
    file.write_text("first-token\n")
    running = servers.start(auth_token_file=str(file), http_port=0)
    for token, id in [("", "RTPJ-5201"), ("Bearer wrong-token", "RTPJ-5202")]:
        headers = {"Authorization": token} if token else {}
        for path in ("/v1/models", "/metrics", "/nowhere"):
            answer = ask(running.url + path, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, id)
            assert answer.error["type"] == "authentication_error"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert ask(running.url + "/health", headers=headers).status == 200
    headers = {"Authorization": "Bearer first-token"}
    assert post(running, COMPLETIONS, {"prompt": "a"}, headers=headers).status == 200


@pytest.mark.capability("TLS and tokens")
def test_tls_and_its_renewal(servers, tmp_path):
    for authority in ("ca", "other"):
        make_authority(tmp_path, authority)
    make_certificate(tmp_path, "server", "ca")
    make_certificate(tmp_path, "next", "other")
    paths = {"tls_cert": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}
    running = servers.start(http_port=0, **paths)
    url = f"https://localhost:{running.http.port}/health"
    assert ask(url, ca=str(tmp_path / "ca.pem")).status == 200
    with pytest.raises(OSError, match="certificate verify failed"):
        ask(url, ca=str(tmp_path / "other.pem"))
    for suffix in ("pem", "key"):
        (tmp_path / f"server.{suffix}").write_bytes((tmp_path / f"next.{suffix}").read_bytes())
    assert ask(url, ca=str(tmp_path / "other.pem")).status == 200


def test_where_it_may_listen(servers, running, tmp_path, monkeypatch):
    with pytest.raises(FailedPrecondition, match="RTPJ-5401 HTTP_ADDRESS_UNAVAILABLE"):
        servers.start(http_port=running.http.port)
    with pytest.raises(InvalidArgument, match="RTPJ-5204 ADDRESS_NEEDS_TLS"):
        bare(host="0.0.0.0")
    with pytest.raises(InvalidArgument, match="RTPJ-5409 TLS_PAIR_INVALID"):
        bare(tls_cert=str(tmp_path / "none"), tls_key=str(tmp_path / "none"))
    assert servers.start(host="::1", http_port=0).http.port
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(FailedPrecondition, match=r"RTPJ-5402 HTTP_EXTRA_MISSING.*rtp_jax\[http\]"):
        bare()


def bare(**options) -> HttpDoor:
    """Put a door together that is never started."""
    config = ServerConfig(http_port=0, **options)
    return HttpDoor(config, GenerationService(config), Health(), Metrics())


def test_a_body_that_does_not_come(running, monkeypatch):
    monkeypatch.setattr(http_door, "READ_TIMEOUT_S", 0.1)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.http.port), timeout=10) as slow:
        slow.sendall(head + b"Content-Length: 50\r\n\r\n{")
        answer = slow.recv(4096)
    assert b" 408 " in answer.splitlines()[0]
    assert b"RTPJ-5408" in answer  # BODY_TOO_SLOW


def test_who_never_reads_is_cut_off(servers, monkeypatch):
    monkeypatch.setattr(http_door, "WRITE_GRACE_S", 0.2)
    running = servers.start(http_port=0)
    body = {"prompt": ["a"] * 400, "max_tokens": 100, "logprobs": 20, "stream": True}
    body = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"X-Request-Timeout-Ms: 3000\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", running.http.port))
        deaf.sendall(head.encode() + body)
        until = time.monotonic() + 10
        cut_off = ("http /v1/completions", "DEADLINE_EXCEEDED")
        while not running.metrics.rpcs[cut_off] and time.monotonic() < until:
            time.sleep(0.02)
    assert running.metrics.rpcs[cut_off] == 1
    assert not running.engine.live


def test_a_client_that_goes_away_is_counted(running):
    async def leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", running.http.port)
        body = b'{"prompt": "slow", "max_tokens": 400}'
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not running.engine.live:
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        while running.engine.live:
            await asyncio.sleep(0.01)

    before = running.metrics.rpcs["http /v1/completions", "CANCELLED"]
    asyncio.run(asyncio.wait_for(leave(), 5))
    assert running.metrics.rpcs["http /v1/completions", "CANCELLED"] == before + 1
    assert not running.service.live_ids


def test_every_kind_of_error_has_a_status():
    assert set(HTTP_OF) == set(CODE_OF) == set(Kind)


def test_events_are_read_by_the_letter():
    with pytest.raises(ValueError, match="unpack"):
        read_events("data: {}")
