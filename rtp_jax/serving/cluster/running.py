"""The process that keeps a cluster up: reads what is wanted, steps, and writes what there is.

SIGTERM and SIGINT drain everything, as `rtp-jax cluster down` does; a second one ends it at once.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rtp_jax.serving.auth import read_tokens
from rtp_jax.serving.client_messages import Tls
from rtp_jax.serving.cluster.controller import Controller, Supervisors, Wanted
from rtp_jax.serving.cluster.folder import Folder
from rtp_jax.serving.cluster.processes import LocalSupervisor, Machine
from rtp_jax.serving.cluster.ray_actors import RayLife, RaySupervisor
from rtp_jax.serving.cluster.replica import Replica
from rtp_jax.serving.cluster.spec import Spec
from rtp_jax.serving.cluster.worker_facts import Asking, Facts, ask_worker
from rtp_jax.serving.members import write_members

logger = logging.getLogger(__name__)
TICK_S = 0.1
NUM_SHOWN = 5  # of a replica's last words
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def keep_up(spec: Spec, folder: Folder, say: Callable[[str], None]) -> None:
    """Be the controller of a cluster until it is told to end, and everything has ended.

    Raises:
      RtpError: another controller has it, or nothing can run anything here.
    """
    folder.make()
    with folder.held(), contextlib.ExitStack() as stack:
        folder.forget()
        write_members(folder.members, [])
        folder.want(Wanted({group.name: group.count for group in spec.groups}))
        supervisors = _supervisors(spec, folder)
        stack.callback(supervisors.workers.close)
        asking = Asking(_asker(spec))
        stack.callback(asking.close)
        controller = Controller(
            spec,
            supervisors,
            asking,
            lambda members: write_members(folder.members, members),
            str(folder.members.absolute()),
            one_first=spec.backend == "local",
        )
        _Loop(controller, folder, say).run()  # if it fails, what is tied to us drains and ends


class _Loop:
    """Steps a controller until everything has ended."""

    def __init__(self, controller: Controller, folder: Folder, say: Callable[[str], None]):
        self._controller, self._folder, self._say = controller, folder, say
        self._signals = 0
        self._told: dict[str, str] = {}  # what was said of each replica
        self._reported: dict[str, Any] = {}
        self._complaint = ""

    def run(self) -> None:
        controller = self._controller
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            signal.signal(number, self._on_signal)
        while not controller.gone:
            if self._signals > 1:
                self._say("a second signal: gone")
                controller.kill()
                return
            self._read_wanted()
            for act in (lambda: controller.step(time.monotonic()), self._tell, self._report):
                try:
                    act()
                except OSError as error:  # a full disk: what runs goes on
                    self._complain(f"the system refuses: {error}. It is tried again")
            time.sleep(TICK_S)
        self._say("everything has ended")

    def _read_wanted(self) -> None:
        """Take what is wanted now; what cannot be read leaves things as they are."""
        wanted, known = self._controller.wanted, {*self._controller.wanted.counts}
        try:
            read = self._folder.wanted()
            if {*read.counts} == known:
                wanted = read
            else:
                self._complain(f"{sorted(read.counts)} are wanted, the groups are {sorted(known)}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._complain(f"what is wanted cannot be read ({error!r}), and stays as it is")
        down = wanted.down or self._controller.wanted.down or self._signals > 0  # no way back
        self._controller.wanted = replace(wanted, down=down)

    def _report(self) -> None:
        """Write what there is, if it is something else than before."""
        status = describe(self._controller, self._folder)
        if status != self._reported:
            self._folder.report(status)
            self._reported = status

    def _complain(self, words: str) -> None:
        """Say what is wrong, once."""
        if words != self._complaint:
            self._say(words)
            self._complaint = words

    def _tell(self) -> None:
        """Say what has changed, and why."""
        for each in self._controller.replicas:
            if self._told.get(each.name) != (state := str(each.state)):
                self._told[each.name] = state
                more = f" at {each.seen.address}" if state == "serving" else ""
                died = state in ("waiting", "failed")
                if died and each.last_code is not None:
                    more = f", it ended with code {each.last_code}"
                self._say(f"{each.name}: {state}{more}")
                if died:
                    for line in each.last_words[-NUM_SHOWN:]:
                        self._say(f"{each.name} | {line}")

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1


def describe(controller: Controller, folder: Folder) -> dict[str, Any]:
    """Say what there is, as plain data."""
    spec, wanted = controller.spec, controller.wanted
    return {
        "name": spec.name,
        "model": spec.model,
        "backend": spec.backend,
        "controller": os.getpid(),
        "members": str(folder.members),
        "down": wanted.down,
        "ready": controller.ready,
        "wanted": dict(wanted.counts),
        "num_restarts": wanted.num_restarts,
        "rolling": controller.rolling,
        "replicas": [_described(each) for each in controller.replicas],
    }


def _described(replica: Replica) -> dict[str, Any]:
    group, life = replica.group, replica.life
    return {
        "name": replica.name,
        "group": group.name if group else "routers",
        "role": group.role if group else "router",
        "state": str(replica.state),
        "address": replica.seen.address if replica.life else "",
        "pages": replica.seen.pages if replica.life else "",
        "epoch": replica.facts.epoch if replica.facts else "",
        "layout": replica.facts.layout if replica.facts else "",
        "starts": replica.num_starts,
        "pid": 0 if life is None else life.pid,
        "actor_pid": life.actor_pid if isinstance(life, RayLife) else 0,
        "error": replica.error,
        "last_code": replica.last_code,
        "last_words": list(replica.last_words),
    }


def _supervisors(spec: Spec, folder: Folder) -> Supervisors:
    here = LocalSupervisor(folder.logs, Machine.this())
    if spec.backend == "local":
        return Supervisors(workers=here, routers=here)
    return Supervisors(workers=RaySupervisor(spec.ray), routers=here)


def _asker(spec: Spec) -> Callable[[str], Facts]:
    """Ask workers as the routers do: with their token, and trusting whom they trust."""
    options = spec.routers.options
    token_file, ca = options.get("worker_token_file"), options.get("worker_tls_ca")
    token = read_tokens(str(token_file))[0] if token_file else None
    tls = Tls(ca=str(ca)) if ca else None
    return lambda address: ask_worker(address, token=token, tls=tls)


def notes(status: dict[str, Any]) -> Sequence[str]:
    """Say what replicas wait for, and which of them cannot be used yet."""
    said = []
    for each in status["replicas"]:
        if each["state"] == "waiting" and each["last_words"]:
            said.append(f"{each['name']} waits to start: {each['last_words'][-1]}")
        if each["error"]:
            said.append(f"{each['name']} serves and does not say who it is: {each['error']}")
    return said


def problems(status: dict[str, Any]) -> Sequence[str]:
    """List the replicas that were given up, with their last words."""
    return [
        f"{each['name']} failed: {' | '.join(each['last_words'][-3:])}"
        for each in status["replicas"]
        if each["state"] == "failed"
    ]
