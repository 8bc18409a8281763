"""Does a cluster work here?  `python -m rtp_jax.serving.cluster_demo` starts one and kills a part.

Two workers of role prefill, two of role decode and a router start on loopback, as `rtp-jax cluster
up` starts them.  Requests stream through the router; while they do, a decode worker is killed.
Every answer has to be the one that an undisturbed cluster gave, and the worker has to come back by
itself.  What happened is shown as `rtp-jax status` shows it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from rtp_jax.errors import RtpError
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.client import Client
from rtp_jax.serving.cluster.folder import Folder
from rtp_jax.serving.router_status import STATE, as_text
from rtp_jax.serving.status_command import ask

CLUSTER = {
    "name": "demo",
    "model": "rtp-tiny",
    "options": {"max_num_seqs": 8, "max_num_batched_tokens": 64},
    "groups": [
        {"name": "prefill", "role": "prefill", "count": 2, "cpus": 0},
        {"name": "decode", "role": "decode", "count": 2, "cpus": 0},
    ],
    "routers": {"ports": [0], "options": {"metrics_port": 0}},
}
VICTIM, NUM_WORKERS = "decode-1", 4
NUM_STREAMS, NUM_TOKENS = 6, 400
START_TIMEOUT_S = 600.0
PROMPT = "A worker is a process with one engine. Request {0} asks the router: what is a page?\n" * 6


class Demo:
    """A cluster in a folder of its own."""

    def __init__(self, folder: Path):
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(CLUSTER, sort_keys=False))
        print(file.read_text(), flush=True)
        words = ["cluster", "up", str(file), "--state", str(folder)]
        print(f"$ rtp-jax {' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "rtp_jax.serving.main", *words]
        self._controller = subprocess.Popen(command, start_new_session=True)
        self._folder = Folder(folder, str(CLUSTER["name"]))

    def replica(self, name: str) -> dict[str, Any]:
        """Return what is said of a replica."""
        return next(each for each in self._folder.status()["replicas"] if each["name"] == name)

    @property
    def router(self) -> str:
        """Where the router listens."""
        return self.replica("router-0")["address"]

    @property
    def serves(self) -> bool:
        """True if all of it serves, and the router uses all workers."""
        return (
            self._folder.status().get("ready", False) and _num_serving(self.router) == NUM_WORKERS
        )

    def until(self, done: Callable[[], object]) -> None:
        """Wait for something."""
        until = time.monotonic() + START_TIMEOUT_S
        while not done():
            if time.monotonic() > until or self._controller.poll() is not None:
                raise SystemExit("demo: it takes too long, or has ended")
            time.sleep(0.05)

    def end(self) -> None:
        """Drain and end all of it."""
        self._controller.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._controller.wait(60)
        self._controller.kill()  # what it had started ends with it
        self._controller.wait()


def main() -> int:
    """Start a cluster, stream, kill, compare."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        demo = Demo(Path(folder))
        stack.callback(demo.end)
        demo.until(lambda: demo.serves)
        print(f"\nlive status page: {demo.replica('router-0')['pages']}\n", flush=True)
        return _show(demo)


def _show(demo: Demo) -> int:
    with Client(demo.router) as client:
        expected = _streams(client)
        print(as_text(ask(demo.router)), flush=True)
        print(f"\n{NUM_STREAMS} answers; now again, and {VICTIM} is killed\n", flush=True)
        before = demo.replica(VICTIM)
        threading.Timer(0.15, os.kill, (before["pid"], signal.SIGKILL)).start()
        answers = _streams(client)
    demo.until(lambda: demo.replica(VICTIM)["epoch"] not in ("", before["epoch"]))
    demo.until(lambda: demo.serves)
    status = ask(demo.router)
    print(f"\n{as_text(status)}", flush=True)
    same = sum(mine == theirs for mine, theirs in zip(answers, expected, strict=True))
    print(f"\n{same} of {NUM_STREAMS} answers are those of the undisturbed cluster", flush=True)
    print(f"{status.num_resumed} requests went on at another worker, {status.num_failed} failed")
    print(f"{VICTIM} is back with epoch {demo.replica(VICTIM)['epoch']}", flush=True)
    return 0 if same == NUM_STREAMS and not status.num_failed else 1


def _streams(client: Client) -> list[tuple[list[int], str]]:
    """Stream some answers at once and return them."""

    def one(number: int) -> tuple[list[int], str]:
        params = SamplingParams(
            max_tokens=NUM_TOKENS, ignore_eos=True, seed=number, temperature=float(number % 2)
        )
        ids, text = [], ""
        for output in client.stream(PROMPT.format(number), params):
            ids += output.outputs[0].token_ids
            text += output.outputs[0].text
        return ids, text

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        return list(pool.map(one, range(NUM_STREAMS)))


def _num_serving(router: str) -> int:
    try:
        return sum(each.state == STATE.STATE_SERVING for each in ask(router).workers)
    except RtpError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
