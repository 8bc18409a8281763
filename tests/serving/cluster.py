"""Workers and routers as real processes on loopback, for tests that kill them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rtp_jax.errors import RtpError
from rtp_jax.serving.client import Client
from rtp_jax.serving.status_command import ask
from rtp_jax.wire import router_pb2 as pb

ROOT = Path(__file__).parents[2]
START_S = 120.0


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Member:
    """A process of the cluster that can be started again at its address."""

    def __init__(self, name: str, port: int, arguments: Sequence[str]):
        self.name, self.address = name, f"127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "rtp_jax.serving.main", *arguments]
        self._command += ["--port", str(port)]
        self.popen: subprocess.Popen | None = None
        self.said: list[str] = []
        self.ready = threading.Event()
        self._listener: threading.Thread | None = None

    def start(self) -> "Member":
        """Start the process; it is not ready yet."""
        self.ready.clear()
        pipe = subprocess.PIPE
        popen = subprocess.Popen(
            self._command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        self.popen = popen
        self._listener = threading.Thread(target=self._listen, args=(popen, self.ready))
        self._listener.start()
        return self

    def wait(self) -> "Member":
        """Wait until it serves."""
        assert self.ready.wait(START_S), f"{self.name}: {self.said[-20:]}"
        assert self.popen is not None
        assert self.popen.poll() is None, f"{self.name}: {self.said[-20:]}"
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        assert self.popen is not None
        os.kill(self.popen.pid, number)

    def end(self, timeout_s: float = 60.0) -> int:
        """Wait for its end and return the exit code."""
        assert self.popen is not None
        return self.popen.wait(timeout_s)

    def stop(self) -> None:
        """End it at once, if it runs."""
        if self.popen is not None and self._listener is not None:
            self.popen.kill()
            self.popen.wait()
            self._listener.join()

    def _listen(self, popen: subprocess.Popen, ready: threading.Event) -> None:
        assert popen.stdout is not None
        with popen.stdout as lines:
            for line in lines:
                self.said.append(line.rstrip())
                if line.startswith("serving "):
                    ready.set()
        ready.set()  # or it never will be


class Cluster:
    """Workers and routers."""

    def __init__(
        self, model: str, *, num_workers: int, num_routers: int, options: Mapping[str, object]
    ):
        flags = [
            part
            for name, value in options.items()
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        ports = free_ports(num_workers + num_routers)
        self.workers = [
            Member(f"worker {port}", port, ["serve", model, *flags]) for port in ports[:num_workers]
        ]
        to = [part for worker in self.workers for part in ("--worker", worker.address)]
        to += ["--worker-silent-s", "1.5"]
        self.routers = [
            Member(f"router {port}", port, ["route", model, *to]) for port in ports[num_workers:]
        ]

    @property
    def targets(self) -> list[str]:
        """Addresses of the routers."""
        return [router.address for router in self.routers]

    def wait_for_workers(self, count: int, timeout_s: float = START_S) -> None:
        """Wait until every router sees some workers."""
        for router in self.routers:
            until = time.monotonic() + timeout_s
            while self.num_serving(router.address) < count:
                assert time.monotonic() < until, "the routers do not see the workers"
                time.sleep(0.05)

    def wait_until_idle(self, timeout_s: float = START_S) -> None:
        """Wait until no router has an open request."""
        for router in self.routers:
            until = time.monotonic() + timeout_s
            while ask(router.address).num_open:
                assert time.monotonic() < until, f"requests are left at {router.name}"
                time.sleep(0.05)

    def num_serving(self, router: str) -> int:
        """Count the workers that a router sees."""
        try:
            return sum(each.state == pb.WorkerStatus.STATE_SERVING for each in ask(router).workers)
        except RtpError:
            return 0

    def stop(self) -> None:
        """End all processes."""
        for member in (*self.routers, *self.workers):
            member.stop()


@contextmanager
def cluster(model: str, **options) -> Iterator[Cluster]:
    """Start a cluster and end it."""
    made = Cluster(model, **options)
    try:
        made.workers[0].start().wait()  # which compiles what the others then load
        for member in (*made.workers[1:], *made.routers):
            member.start()
        for member in (*made.workers, *made.routers):
            member.wait()
        made.wait_for_workers(len(made.workers))
        yield made
    finally:
        made.stop()


def client_of(made: Cluster) -> Client:
    """Connect to all routers."""
    return Client(made.targets)
