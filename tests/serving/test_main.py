"""The command line: exit codes, one message for each error, a fake engine behind the commands."""

import io
import json
import logging
import subprocess
import sys

import pytest

import rtp_jax
from rtp_jax.errors import NotFound
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving import look_commands
from rtp_jax.serving.logs import JsonFormatter
from rtp_jax.serving.main import main
from tests.serving.fake_engine import FakeEngine
from tests.serving.sync_fake import SyncFakeEngine


@pytest.fixture
def engine(monkeypatch):
    """Stand in for the engine."""
    fake = SyncFakeEngine()
    monkeypatch.setattr(rtp_jax, "Engine", fake.built, raising=False)
    return fake


@pytest.mark.capability("command line")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["--help"], 0, "doctor"),
        (["--version"], 0, "rtp-jax "),
        (["sevre"], 2, "invalid choice"),
        (["serve", "--help"], 0, "--max-num-seqs"),
        (["serve", "--prot", "1"], 2, "RTPJ-1001 OPTION_UNKNOWN.*Did you mean --port"),
        (["serve", "--max-num", "1"], 2, "RTPJ-1001"),
        (["serve", "--port"], 2, "expected one argument"),
        (["serve", "x", "--port", "x"], 2, "RTPJ-1202"),
        (["serve", "x", "y"], 2, "unexpected arguments: y"),
        (["serve"], 2, "RTPJ-1201 MODEL_NOT_GIVEN"),
        (["serve", "x", "--host", "0.0.0.0"], 2, "RTPJ-5204"),
        (["serve", "x", "--tls-cert", "no/such"], 2, "RTPJ-5206"),
        (["serve", "x", "--auth-token-file", "no/such"], 2, "RTPJ-5203"),
        (["serve", "x", "--config", "no/such"], 2, "RTPJ-1203"),
        (["serve", "--print-config", "--seed", "7"], 0, "seed: *7 .*# flag --seed"),
        (["generate"], 2, "required: model"),
        (["generate", "m", "p", "--temperature", "hot"], 2, "RTPJ-1202"),
        (["generate", "m", "p", "--temperature", "nan"], 2, "RTPJ-1003"),
        (["generate", "m", "p", "--max-tokens", "0"], 2, "RTPJ-1003"),
        (["generate", "m", "p", "--stop", ""], 2, "RTPJ-1003"),
        (["generate", "m", "p", "--token-file", "x"], 2, "RTPJ-1204 SERVER_NOT_GIVEN"),
        (["generate", "m", "p", "--server", "127.0.0.1:1"], 1, "RTPJ-5101"),
        (["generate", "m", "\udcff", "--server", "127.0.0.1:1"], 1, "RTPJ-5111"),
        (["generate", "no-model", "p"], 1, "RTPJ-3031"),
        (["chat", "m", "--server", "127.0.0.1:1", "--port", "1"], 2, "RTPJ-1001"),
        (["info"], 2, "RTPJ-1201"),
        (["info", "--server", "127.0.0.1:1"], 1, "RTPJ-5101"),
    ],
)
def test_how_a_command_ends(engine, capsys, monkeypatch, arguments, code, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    try:
        found = main(arguments)
    except SystemExit as exit_:
        found = exit_.code
    output = capsys.readouterr()
    assert found == code, output.err
    text = output.out + output.err
    assert_matches(words, text)
    assert "Traceback" not in text
    if "RTPJ" in words:
        assert len(output.err.strip().splitlines()) == 1


def assert_matches(words: str, text: str) -> None:
    """Find a pattern in a text whose lines may be wrapped."""
    with pytest.raises(ValueError, match=words):
        raise ValueError(" ".join(text.split(" ")))


@pytest.mark.capability("command line")
def test_generate_shows_the_text(engine, capsys):
    assert main(["generate", "fake", "hello", "--max-tokens", "5", "--stop", "x"]) == 0
    assert capsys.readouterr().out == "hello\n"
    params = engine.seen[-1]["params"]
    assert (params.max_tokens, params.stops) == (5, ("x",))
    assert engine.closed


def test_generate_reads_standard_input(engine, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from stdin"))
    assert main(["generate", "fake", "--max-tokens", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "prompt": "from stdin",
        "outputs": [{"text": "from", "finish_reason": "length"}],
    }


def test_one_bad_prompt_does_not_lose_the_others(engine, capsys):
    assert main(["generate", "fake", "busy", "hello"]) == 1
    output = capsys.readouterr()
    assert output.out == "hellohellohelloh\n"
    assert "RTPJ-2201" in output.err


def test_generate_from_a_server(running, capsys):
    assert main(["generate", "fake", "hello", "--server", running.address]) == 0
    assert capsys.readouterr().out == "hellohellohelloh\n"
    assert main(["generate", "other", "hello", "--server", running.address]) == 1
    assert "RTPJ-5012 MODEL_NOT_SERVED" in capsys.readouterr().err


def test_several_completions(running, capsys):
    arguments = ["generate", "fake", "hello", "--n", "2", "--max-tokens", "5", "--server"]
    assert main([*arguments, running.address]) == 0
    assert capsys.readouterr().out == "hello\n--- 2\nhello\n"


def test_chat(engine, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\ncd\n/exit\n"))
    assert main(["chat", "fake", "--system", "S", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == "Sab\nSab\n"
    roles = [message["role"] for message in engine.seen[-2]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_chat_with_a_server(running, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    assert main(["chat", "fake", "--max-tokens", "2", "--server", running.address]) == 0
    assert capsys.readouterr().out == "ab\n"


def test_ctrl_c_stops_an_answer_and_then_the_program(engine, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("interrupted\nok\n"))
    assert main(["chat", "fake", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().out == "i\nin\n"
    assert main(["generate", "fake", "interrupted"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_info_of_a_server(running, capsys):
    assert main(["info", "--server", running.address]) == 0
    assert '"max_model_len": 512' in capsys.readouterr().out


def test_info_of_a_model_in_a_process_that_has_imported_nothing():
    command = [sys.executable, "-m", "rtp_jax.serving.main", "info", "rtp-tiny"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen3" in done.stdout.lower()


def test_doctor(capsys, monkeypatch):
    checks = {"a": lambda: iter([(True, "fine"), (False, "broken")])}
    monkeypatch.setattr(look_commands, "CHECKS", checks)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok   a: fine\nFAIL a: broken\n"


def test_the_checks_of_doctor_say_something(monkeypatch):
    monkeypatch.setattr(look_commands, "DEVICES", "print('cpu: cpu')")
    for check in look_commands.CHECKS.values():
        said = [words for _, words in check()]
        assert said
        assert "" not in said


def test_an_error_of_the_model_is_a_failure(monkeypatch, capsys):
    def missing(*_: object, **__: object) -> None:
        raise NotFound("RTPJ-3031 MODEL_NOT_FOUND: x. Download it.")

    monkeypatch.setattr(rtp_jax, "Engine", missing, raising=False)
    assert main(["generate", "x", "y"]) == 1
    assert capsys.readouterr().err == "rtp-jax: RTPJ-3031 MODEL_NOT_FOUND: x. Download it.\n"


def test_log_lines_as_json():
    record = logging.makeLogRecord(
        {"msg": "a %s", "args": ("b",), "levelname": "INFO", "name": "n"}
    )
    record.request_id = "r-1"
    spelled = json.loads(JsonFormatter().format(record))
    assert (spelled["message"], spelled["level"], spelled["request_id"]) == ("a b", "info", "r-1")
    assert set(spelled) == {"time", "level", "logger", "message", "request_id"}


def test_the_fake_is_like_the_real_one():
    assert isinstance(FakeEngine().info.default_sampling_params, SamplingParams)
