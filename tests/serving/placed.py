"""A cluster that `rtp-jax cluster up` keeps up, and load for it, for tests that break it."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rtp_jax import SamplingParams
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.cluster.folder import Folder
from rtp_jax.serving.status_command import ask
from tests.serving.cluster import ROOT

START_S = 300.0
NUM_STREAMS, TOKENS = 4, 120


class Placed:
    """A controller as a process, and what it says."""

    def __init__(self, content: Mapping[str, Any], folder: Path, **environment: str):
        self.folder = Folder(folder / "state", content["name"])
        self._state = ["--state", str(folder / "state")]
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(dict(content)))
        self.log = folder / "up.log"
        self._environment = {**os.environ, **environment}
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(
                self._command("up", str(file)),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def replicas(self) -> dict[str, dict[str, Any]]:
        """Return what is said of each replica, by name."""
        return {each["name"]: each for each in self.folder.status().get("replicas", [])}

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return what is said of each worker."""
        return {name: one for name, one in self.replicas().items() if one["role"] != "router"}

    @property
    def targets(self) -> list[str]:
        """Addresses of the routers."""
        return [one["address"] for one in self.replicas().values() if one["role"] == "router"]

    def until(self, done: Callable[[], object], timeout_s: float = START_S) -> None:
        """Wait for something while the controller lives."""
        until = time.monotonic() + timeout_s
        while not done():
            assert self.popen.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def until_ready(self, num_workers: int) -> None:
        """Wait until all serve and the routers know it."""
        self.until(lambda: self.folder.status().get("ready"))
        for target in self.targets:
            self.until(lambda target=target: len(serving(target)) == num_workers)

    def until_again(self, name: str, epoch: str, num_workers: int) -> None:
        """Wait until a replica serves in another life."""
        self.until(lambda: self.replicas()[name]["epoch"] not in ("", epoch))
        self.until_ready(num_workers)

    def run(self, *words: str) -> subprocess.CompletedProcess:
        """Run another of the commands."""
        return subprocess.run(
            self._command(*words),
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=START_S,
        )

    def down(self) -> None:
        """End it as a user does."""
        answer = self.run("down")
        assert answer.returncode == 0, answer.stderr
        assert self.popen.wait(30) == 0

    def stop(self) -> None:
        """End it, whatever state it is in: what it started ends with it."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "rtp_jax.serving.main", "cluster", *words, *self._state]


def serving(router: str) -> list[str]:
    """List the epochs of the workers that a router uses."""
    return [each.facts.epoch for each in ask(router).workers if each.state == 1]


def content(
    model: Path, programs: Path, counts: Mapping[str, int], options: Mapping[str, object], **more
) -> dict[str, Any]:
    """Write down a cluster with a group for each role."""
    return {
        "name": "placed",
        "model": str(model),
        "options": {**options, "compile_cache": str(programs), "stall_timeout_s": 30},
        "groups": [
            {"name": role, "role": role, "count": count, "cpus": 0.25}
            for role, count in counts.items()
        ],
        "routers": {"ports": [0], "options": {"worker_silent_s": 1.5}},
        **more,
    }


def requests() -> list[tuple[list[int], SamplingParams]]:
    """Make seeded requests."""
    rng = random.Random(5)
    return [
        (
            [rng.randrange(5, 400) for _ in range(rng.randrange(4, 60))],
            SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=i, ignore_eos=True),
        )
        for i in range(NUM_STREAMS)
    ]


async def all_at_once(client: AsyncClient, name: str) -> list[list[int]]:
    """Stream all requests."""

    async def one(number: int, prompt, params) -> list[int]:
        ids = []
        options = RequestOptions(request_id=f"{name}-{number}")
        async for output in client.stream(prompt, params, options):
            ids += output.outputs[0].token_ids
        return ids

    return await asyncio.gather(*(one(i, *each) for i, each in enumerate(requests())))


def under_load(placed: Placed, disturb: Callable[[], None]) -> int:
    """Do something while requests stream; each must get the tokens that it gets undisturbed.

    Returns how many requests came through.
    """

    async def run() -> int:
        async with AsyncClient(placed.targets) as client:
            expected = await all_at_once(client, "undisturbed")
            assert all(len(ids) == TOKENS for ids in expected)
            doing: Awaitable = asyncio.ensure_future(asyncio.to_thread(disturb))
            done = 0
            while not doing.done():
                assert await all_at_once(client, f"during-{done}") == expected
                done += NUM_STREAMS
            await doing
            assert await all_at_once(client, "after") == expected
            return done

    done = asyncio.run(run())
    for target in placed.targets:
        assert ask(target).num_failed == 0
    return done


def as_json(placed: Placed) -> dict[str, Any]:
    """Ask for the status as a user does."""
    answer = placed.run("status", "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)
