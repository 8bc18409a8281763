"""Does it work here?  `python -m rtp_jax.serving.demo` serves the built-in model and asks it.

It starts `rtp-jax serve rtp-tiny` as a child, shows what that says while it loads and compiles,
streams five answers through the real client, checks them, and ends the server with SIGTERM.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from rtp_jax.errors import DeadlineExceeded, RtpError, Unavailable
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions

MODEL = "rtp-tiny"
CASES = Path(__file__).parents[1] / "assets" / MODEL / "demo.json"
COMMAND = [sys.executable, "-m", "rtp_jax.serving.main", "serve", MODEL, "--port", "0"]
ENOUGH = 0.8  # of the answers must be right
START_TIMEOUT_S, STOP_TIMEOUT_S, ANSWER_TIMEOUT_S = 600.0, 60.0, 60.0
LISTENING = "listening on "


def main() -> int:
    """Serve the built-in model and put its questions."""
    print("$ rtp-jax " + " ".join(COMMAND[3:]), flush=True)
    return run(COMMAND, json.loads(CASES.read_text()))


def run(command: Sequence[str], cases: Sequence[Mapping]) -> int:
    """Start a server, ask it, end it; return 0 if enough was right and the server ended well."""
    with tempfile.TemporaryFile("w+") as log:  # shown only if something fails
        # A session of its own: Ctrl-C is ours, and reaches the server as one SIGTERM.
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        num_right, code = 0, 1
        try:
            num_right, code = _use(server, cases)
        finally:
            if code != 0:
                log.seek(0)
                print(log.read(), file=sys.stderr)
    print(f"server ended with exit code {code}", flush=True)
    return 0 if num_right >= ENOUGH * len(cases) and code == 0 else 1


def _use(server: subprocess.Popen, cases: Sequence[Mapping]) -> tuple[int, int]:
    """Ask a server and end it; return how much was right, and the server's exit code."""
    assert server.stdout is not None
    num_right, shown = 0, threading.Thread(target=_show, args=(server.stdout,), daemon=True)
    try:
        address = _address(server.stdout)
        shown.start()
        num_right = _ask_all(address, server, cases)
    except RtpError as error:
        print(f"demo: {error}", file=sys.stderr)
    finally:
        server.send_signal(signal.SIGTERM)
        code = _wait(server)
        if shown.is_alive():
            shown.join()
        server.stdout.close()
    return num_right, code


def _ask_all(address: str, server: subprocess.Popen, cases: Sequence[Mapping]) -> int:
    """Put every question and return how many were answered rightly."""
    with Client(address) as client:
        _wait_until_serving(client, server)
        right = [_ask(client, case) for case in cases]
    print(f"\n{sum(right)} of {len(cases)} right")
    return sum(right)


def _ask(client: Client, case: Mapping) -> bool:
    """Stream one answer to the terminal and say how fast it came."""
    print(f"\n--- {case['name']}\n{case['prompt']}", end="", flush=True)
    params = SamplingParams(temperature=0.0, max_tokens=case["max_tokens"], stop=case.get("stop"))
    began, first_s, num_tokens, text = time.monotonic(), 0.0, 0, ""
    options = RequestOptions(timeout_s=ANSWER_TIMEOUT_S)
    for output in client.stream(case["prompt"], params, options):
        first_s = first_s or time.monotonic() - began
        num_tokens += len(output.outputs[0].token_ids)
        text += output.outputs[0].text
        print(output.outputs[0].text, end="", flush=True)
    total_s = time.monotonic() - began
    right = case["expect"] in text
    verdict = "right" if right else f"wrong, expected {case['expect']!r}"
    rate = num_tokens / total_s
    print(f"\n    {verdict}; TTFT {first_s * 1e3:.0f} ms, {num_tokens} tokens, {rate:.0f} tokens/s")
    return right


def _address(lines: IO[str]) -> str:
    """Show what the server says until it says where it listens."""
    for line in lines:
        print(f"    {line}", end="", flush=True)
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).strip()
    raise SystemExit("demo: the server ended before it listened; what it said is above")


def _show(lines: IO[str]) -> None:
    for line in lines:
        print(f"    {line}", end="", flush=True)


def _wait_until_serving(client: Client, server: subprocess.Popen) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit(f"demo: the server ended with exit code {server.returncode}")
        with contextlib.suppress(Unavailable, DeadlineExceeded):  # it may just have ended
            if client.is_serving():
                return
        time.sleep(0.1)
    raise SystemExit(f"demo: the server was not ready after {START_TIMEOUT_S:g} s")


def _wait(server: subprocess.Popen) -> int:
    try:
        return server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
