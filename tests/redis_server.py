"""A real Redis or Valkey for tests: found on PATH or beside the interpreter, never installed.

The extra `dev` brings one where a wheel of it exists.  Elsewhere tests that need one are skipped,
and fail where `CI` is set.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("redis-server", "valkey-server")


class RedisServer:
    """One server on loopback, without files."""

    def __init__(self, program: str, *options: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", *options]
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd="/")
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                if self.ask(b"PING") == b"+PONG\r\n":
                    return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("the server does not answer")

    def ask(self, command: bytes) -> bytes:
        """Send one inline command; return the beginning of its answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(4096)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it hang: connections stay open and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class Answers:
    """Something on a port that answers whatever it is sent with the same bytes, or late."""

    def __init__(self, answer: bytes, delay_s: float = 0.0):
        self._answer, self._delay_s = answer, delay_s
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        with connection:
            while not self._closing.is_set():
                try:
                    if not connection.recv(1 << 16):
                        return
                    self._closing.wait(self._delay_s)
                    connection.sendall(self._answer)
                except TimeoutError:
                    continue
                except OSError:
                    return


def find_server() -> str:
    """Return the program, or end the test that needs it."""
    beside = Path(sys.executable).parent
    for name in NAMES:
        if found := shutil.which(name) or shutil.which(name, path=str(beside)):
            return found
    if os.environ.get("CI"):
        pytest.fail("neither redis-server nor valkey-server is installed")
    pytest.skip("neither redis-server nor valkey-server is installed")


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server while a test needs it."""
    server = RedisServer(find_server(), *options)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def answering(answer: bytes, delay_s: float = 0.0) -> Iterator[str]:
    """Run something that answers like this; gives its URL."""
    server = Answers(answer, delay_s)
    try:
        yield server.url
    finally:
        server.close()
