"""The life of a worker process: ready, drained, gone at once, lost engine."""

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rtp_jax import errors
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from tests.serving.http_client import ask, said

ROOT = Path(__file__).parents[2]
LONG = SamplingParams(max_tokens=60)  # 1.2 s of `slow`


class Process:
    """A worker process and what it says."""

    def __init__(self, *options: str):
        command = [sys.executable, "-m", "tests.serving.fake_worker", *options]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        self.errors: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.said: list[str] = []

    def _listen(self) -> None:
        self.errors += self.popen.stderr

    def wait_for(self, word: str) -> str:
        """Read lines until one starts with a word, and return its rest."""
        for line in self.popen.stdout:
            self.said.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"{word!r} was never said, but {self.said}, {self.errors}")

    def client(self) -> Client:
        """Connect to it."""
        return Client(self.wait_for("listening on "))

    def end(self, timeout_s: float = 20) -> int:
        """Wait for its end and return the exit code."""
        self.said += list(self.popen.stdout)
        code = self.popen.wait(timeout_s)
        self._listener.join(timeout_s)
        return code


@pytest.fixture
def process():
    started = []

    def start(*options: str) -> Process:
        started.append(Process(*options))
        return started[-1]

    yield start
    for each in started:
        each.popen.kill()
        each.popen.wait()
        each.popen.stdout.close()
        each.popen.stderr.close()


def in_thread(function):
    """Run a function in a thread; return the list its result or error goes to, and the thread."""
    results = []

    def run() -> None:
        try:
            results.append(function())
        except errors.RtpError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return results, thread


@pytest.mark.capability("drain")
def test_it_drains(process):
    worker = process()
    with worker.client() as client:
        worker.wait_for("serving fake on")
        stream = client.stream("slow", LONG)
        next(stream)
        results, thread = in_thread(lambda: client.generate("slow", LONG))
        time.sleep(0.2)
        worker.popen.send_signal(signal.SIGTERM)
        worker.wait_for("draining: 2 requests left")
        assert not client.is_serving()
        with pytest.raises(errors.Unavailable, match="RTPJ-4003 DRAINING") as refused:
            client.generate("hello")
        assert refused.value.retry_after_s > 0
        assert sum(len(output.outputs[0].token_ids) for output in stream) == 59
        thread.join()
        assert results[0].outputs[0].finish_reason == "length"
        assert worker.end() == 0
    assert "drained\n" in worker.said


@pytest.mark.capability("drain")
@pytest.mark.parametrize("stream", [True, False])
def test_the_http_door_drains_with_it(process, stream):
    worker = process("--http-port", "0")
    url = "http://" + worker.wait_for("http on ")
    worker.wait_for("serving fake on")
    body = {"prompt": "slow", "max_tokens": 60, "stream": stream}
    results, thread = in_thread(lambda: ask(f"{url}/v1/completions", body))
    time.sleep(0.3)
    worker.popen.send_signal(signal.SIGTERM)
    worker.wait_for("draining: 1 requests left")
    assert ask(f"{url}/health").status == 503
    refused = ask(f"{url}/v1/completions", {"prompt": "hello"})
    assert (refused.status, refused.error["code"]) == (503, "RTPJ-4003")
    assert refused.headers["Retry-After"] == "1"
    thread.join()
    text = said(results[0].events) if stream else results[0].json["choices"][0]["text"]
    assert text == "slow" * 15
    assert worker.end() == 0


def test_what_does_not_end_in_time_is_aborted(process):
    worker = process("--drain-timeout-s", "0.2")
    with worker.client() as client:
        worker.wait_for("serving fake on")
        stream = client.stream("slow", SamplingParams(max_tokens=400))
        next(stream)
        worker.popen.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(errors.Cancelled, match="RTPJ-4002"):
            list(stream)
        assert worker.end() == 0
        assert time.monotonic() - began < 2
    assert any("1 requests aborted" in line for line in worker.said)


def test_a_second_signal_ends_it_at_once(process):
    worker = process()
    with worker.client() as client:
        worker.wait_for("serving fake on")
        stream = client.stream("slow", SamplingParams(max_tokens=400))
        next(stream)
        worker.popen.send_signal(signal.SIGTERM)
        worker.wait_for("draining")
        began = time.monotonic()
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.end() == 1
        assert time.monotonic() - began < 1
        with pytest.raises(errors.Unavailable):
            list(stream)


def test_while_it_loads(process):
    worker = process("--load-s", "60")
    with worker.client() as client:
        assert not client.is_serving()
        with pytest.raises(errors.Unavailable, match="RTPJ-5010 WARMING_UP"):
            client.generate("hello")
        worker.popen.send_signal(signal.SIGINT)
        assert worker.end(5) == 0


def test_an_engine_that_cannot_be_built(process):
    worker = process("--fail")
    assert worker.end() == 1
    assert "RTPJ-9999 NO_DEVICE" in "".join(worker.errors)
    assert "Traceback" not in "".join(worker.errors)


def test_a_taken_port_is_known_before_anything_is_loaded(process):
    first = process()
    port = first.wait_for("listening on ").rpartition(":")[2]
    second = process("--port", port, "--load-s", "60")
    assert second.end(10) == 1
    assert "RTPJ-5205 ADDRESS_UNAVAILABLE" in "".join(second.errors)


@pytest.mark.capability("health")
@pytest.mark.parametrize(
    ("option", "words"), [("--die-after", "its loop has ended"), ("--stick-after", "stuck")]
)
def test_a_lost_engine_ends_the_process(process, option, words):
    worker = process(option, "1.0")
    metrics = worker.wait_for("metrics on ").removesuffix("metrics")
    with worker.client() as client:
        worker.wait_for("serving fake on")
        assert client.is_serving()
        assert get(metrics + "readyz") == get(metrics + "livez") == 200
        began = time.monotonic()
        if option == "--stick-after":
            while client.is_serving():
                time.sleep(0.02)
            assert time.monotonic() - began < 5
            assert get(metrics + "readyz") == get(metrics + "livez") == 503
        assert worker.end() == 1
    assert "the engine is lost: " in worker.said[-1]
    assert words in worker.said[-1]
    assert 'File "' in "".join(worker.errors)  # the stacks


def test_an_engine_that_retires_finishes_what_runs(process):
    worker = process("--retire-after", "1.0")
    with worker.client() as client:
        worker.wait_for("serving fake on")
        stream = client.stream("slow", LONG)
        outputs = [next(stream)]
        worker.wait_for("draining")
        assert not client.is_serving()
        outputs += list(stream)
        assert outputs[-1].outputs[0].finish_reason is not None
        assert worker.end() == 1
    assert "retiring: RTPJ-4315 stuck\n" in worker.said
    assert worker.said[-1] == "drained\n"


def get(url: str) -> int:
    """Ask a page for its status."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
