"""Replicas as processes of this machine: the supervisor that needs nothing installed.

What a replica asks for (processors, GPUs, memory) is booked, and what the machine does not have is
refused; GPUs are handed out by number.  A process writes a log; its last lines are kept as its last
words.  `OwnedProcess` is also what a Ray actor owns (`ray_actors.py`).
"""

import collections
import contextlib
import errno
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rtp_jax.environment import child_environment, visible_gpus
from rtp_jax.errors import FailedPrecondition
from rtp_jax.serving.cluster.spec import Resources
from rtp_jax.serving.cluster.supervisor import NUM_LAST_WORDS, Launch, Look, NoRoomYet, Phase

GPU = re.compile(r"nvidia(\d+)")
MAX_WORD_CHARS = 500
LOOPBACK, PORTS = "127.0.0.1", ("--port", "--http-port", "--metrics-port")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to give."""

    cpus: int
    gpus: tuple[str, ...]  # by the names that CUDA_VISIBLE_DEVICES knows
    memory: int  # bytes

    @classmethod
    def this(cls) -> "Machine":
        """Look at this machine."""
        gpus = visible_gpus()
        if gpus is None:
            matches = [GPU.fullmatch(each.name) for each in Path("/dev").iterdir()]
            gpus = sorted((match[1] for match in matches if match), key=int)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(len(os.sched_getaffinity(0)), tuple(gpus), memory)


class OwnedProcess:
    """A command of `rtp-jax` that ends with us."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path | None):
        command = [sys.executable, "-m", "rtp_jax.serving.cluster.tied", *arguments]
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # see `tied.py`
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=child_environment(environment),
            start_new_session=True,  # Ctrl-C is for the controller, which drains
        )
        self._said: collections.deque[str] = collections.deque(maxlen=NUM_LAST_WORDS)
        self._address = self._pages = ""
        self._serving = self._ending = False
        self._log = log
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def look(self) -> Look:
        """Say how it is."""
        code = self._popen.poll()
        if code is not None:
            self._listener.join(1.0)  # its last words may still be in the pipe
            return Look(Phase.ENDED, code=code, last_words=tuple(self._said))
        phase = Phase.SERVING if self._serving else Phase.STARTING
        return Look(phase, self._address, self._pages, last_words=tuple(self._said))

    def end(self) -> None:
        """Let it finish what it has and end; it is told once."""
        if self._ending or self._popen.poll() is not None:
            return
        self._ending = True
        self._popen.send_signal(signal.SIGTERM)
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):  # it has just ended
            self._popen.stdin.write("d")
            self._popen.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        self._listener.join()
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what we said at its end was not read
            self._popen.stdin.close()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        with contextlib.ExitStack() as stack:
            lines = stack.enter_context(self._popen.stdout)
            log = None
            with contextlib.suppress(OSError):  # on a full disk, what it says is heard all the same
                log = stack.enter_context(_fresh(self._log)) if self._log else None
            for line in lines:
                with contextlib.suppress(OSError):
                    if log:
                        log.write(line.encode())
                self._hear(line.rstrip()[:MAX_WORD_CHARS])

    def _hear(self, line: str) -> None:
        self._said.append(line)
        if line.startswith("listening on "):
            host, _, port = line.removeprefix("listening on ").rpartition(":")
            self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        elif line.startswith("metrics on "):
            self._pages = line.removeprefix("metrics on ").removesuffix("metrics")
        elif line.startswith("serving "):
            self._serving = True


def _fresh(log: Path) -> IO[bytes]:
    """Begin a log without a buffer; that of the life before is kept."""
    if log.exists():
        log.replace(log.with_suffix(".before.log"))
    return log.open("wb", buffering=0)


@dataclass(slots=True)
class Booking:
    """What a process was given."""

    resources: Resources
    gpus: tuple[str, ...]
    ends: bool = False  # it was told to


class LocalSupervisor:
    """Starts processes here."""

    def __init__(self, logs: Path, machine: Machine):
        self._logs = logs
        self._machine = machine
        self._booked: dict[int, Booking] = {}
        self._waits_s: dict[str, float] = {}  # since when, by name: time.monotonic()

    def start(self, launch: Launch) -> "LocalLife":
        """Start a process, if the machine has what it asks for.

        Raises:
          FailedPrecondition: it does not have it.
          NoRoomYet: it will, once those have ended that were told to.
        """
        gpus = self._book(launch)
        arguments = [*launch.arguments, "--port", str(launch.port)]
        self._wait_for_ports(launch, arguments)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if self._machine.gpus else {}
        environment = {**launch.environment, **visible}
        process = OwnedProcess(arguments, environment, self._logs / f"{launch.name}.log")
        self._booked[process.pid] = Booking(launch.resources, gpus)
        return LocalLife(process, self._booked)

    def close(self) -> None:
        """Let go; there is nothing to let go of."""

    def _wait_for_ports(self, launch: Launch, arguments: Sequence[str]) -> None:
        """Let whoever has a port end: the replica of a controller before us may still drain.

        After a while the process is started all the same, and says why it cannot listen.
        """
        taken = _taken_port(arguments)
        if taken is None:
            self._waits_s.pop(launch.name, None)
            return
        now_s = time.monotonic()
        if now_s - self._waits_s.setdefault(launch.name, now_s) < launch.port_wait_s:
            raise NoRoomYet(f"{launch.name} waits for port {taken}, where somebody listens")

    def _book(self, launch: Launch) -> tuple[str, ...]:
        """Find room, and choose GPUs."""
        asked = launch.resources
        for name, has in (
            ("cpus", self._machine.cpus),
            ("gpus", len(self._machine.gpus)),
            ("memory", self._machine.memory),
        ):
            booked = self._booked.values()
            taken = sum(getattr(each.resources, name) for each in booked)
            stays = sum(getattr(each.resources, name) for each in booked if not each.ends)
            wants = getattr(asked, name)
            if wants and stays + wants <= has < taken + wants:
                raise NoRoomYet(f"{launch.name} waits for {name}={wants:g}, which others give up")
            if wants and taken + wants > has:
                raise FailedPrecondition(
                    f"RTPJ-5624 NO_ROOM_HERE: {launch.name} asks for {name}={wants:g}; this machine"
                    f" has {has}, and {taken:g} are given to others. Lower {name} or the count of"
                    " its group.",
                    field=name,
                )
        used = {name for each in self._booked.values() for name in each.gpus}
        free = [name for name in self._machine.gpus if name not in used]
        return tuple(free[: asked.gpus])


def _taken_port(arguments: Sequence[str]) -> int | None:
    """Find a port among flags at which somebody listens already."""
    given = dict(itertools.pairwise(arguments))
    host = given.get("--host", LOOPBACK)
    for port in (int(words) for each in PORTS if (words := given.get(each, "")).isdigit()):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:  # whatever else is wrong, the process says it
                if error.errno == errno.EADDRINUSE:
                    return port
    return None


class LocalLife:
    """A process that gives back what it was given."""

    def __init__(self, process: OwnedProcess, booked: dict[int, Booking]):
        self._process = process
        self._booked = booked

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def look(self) -> Look:
        """Say how it is."""
        return self._process.look()

    def end(self) -> None:
        """Let it finish what it has and end."""
        if booking := self._booked.get(self._process.pid):
            booking.ends = True
        self._process.end()

    def kill(self) -> None:
        """End it at once, and give back what it holds."""
        self._process.kill()
        self._booked.pop(self._process.pid, None)
