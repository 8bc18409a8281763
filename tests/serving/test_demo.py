"""The demo, with a server that echoes in place of the built-in model."""

import sys
from pathlib import Path

import pytest

from rtp_jax.serving import demo

COMMAND = [sys.executable, "-m", "tests.serving.fake_worker"]
RIGHT = {"name": "right", "prompt": "hello", "expect": "ohel", "max_tokens": 8, "stop": "x"}
WRONG = {"name": "wrong", "prompt": "hello", "expect": "goodbye", "max_tokens": 8}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_enough_right_answers(capfd):
    assert demo.run(COMMAND, [RIGHT, RIGHT, WRONG, RIGHT, RIGHT]) == 0
    shown = capfd.readouterr().out
    assert "listening on 127.0.0.1" in shown
    assert "hellohel\n    right; TTFT" in shown
    assert "wrong, expected 'goodbye'" in shown
    assert "4 of 5 right" in shown
    assert shown.endswith("server ended with exit code 0\n")


def test_too_few_right_answers(capfd):
    assert demo.run(COMMAND, [RIGHT, WRONG]) == 1
    assert "1 of 2 right" in capfd.readouterr().out


def test_a_server_that_cannot_start(capfd):
    with pytest.raises(SystemExit, match="exit code 1"):
        demo.run([*COMMAND, "--fail"], [RIGHT])
    assert "RTPJ-9999 NO_DEVICE" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="ended before it listened"):
        demo.run([sys.executable, "-c", "print('no')"], [RIGHT])
