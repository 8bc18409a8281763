"""An engine whose steps are counted from when it is told to give a request up until it has."""

import threading
import time
from collections.abc import Mapping

from rtp_jax import Engine
from rtp_jax.engine.loop import Abort
from rtp_jax.request import Request

MOST_STEPS = 2
SLACK_S = 0.1  # a worker's deadline is later than its client's by the way of the request


class Watched:
    """An engine whose steps are counted, and may be slowed down or held up."""

    def __init__(self, engine: Engine):
        self.step_s, self.gate = 0.0, threading.Event()
        self.gate.set()
        self.heard: dict[str, int] = {}  # steps when it was told to give a request up
        self.gone: dict[str, int] = {}  # steps when it had
        self.lost: list[str] = []  # requests that left pages behind
        self.began_s: list[float] = []  # when each step was scheduled
        self._seen: set[str] = set()
        parts = engine._parts
        self.scheduler = parts.scheduler
        self._execute, self._send = parts.runner.execute, parts.loop.send
        self._schedule = parts.scheduler.schedule
        parts.runner.execute, parts.loop.send = self.execute, self.send
        parts.scheduler.schedule = self.schedule

    def has(self, request_id: str) -> bool:
        """Tell whether a request lives here."""
        return request_id in self.scheduler._roster.groups

    def execute(self, batch):
        """Take the time that is wanted."""
        time.sleep(self.step_s)
        assert self.gate.wait(10)
        return self._execute(batch)

    def send(self, message) -> None:
        """Note when a request is given up; one that comes again has a life of its own."""
        if isinstance(message, Request):
            self.heard.pop(message.id, None)
        elif isinstance(message, Abort) and message.request_id in self._seen:
            self.heard.setdefault(message.request_id, len(self.began_s))
        self._send(message)

    def schedule(self, now_s, *, only=None):
        """Count a step, and look who has gone."""
        plan = self._schedule(now_s, only=only)
        if plan is not None:
            self.began_s.append(now_s)
        live = set(self.scheduler._roster.groups)
        for request_id in live & self.gone.keys():
            del self.gone[request_id]
        for request_id in self._seen - live - set(self.gone):
            self.gone[request_id] = len(self.began_s)
            if self.num_used() != self.num_held():
                self.lost.append(request_id)
        self._seen |= live
        return plan

    def num_used(self) -> int:
        """Count the pages that cannot be given to others."""
        pool = self.scheduler._ledger.pool
        return pool.num_pages - 1 - pool.num_available

    def num_held(self) -> int:
        """Count the pages of all that run."""
        running = self.scheduler._roster.running.copied()
        return len({page for tracked in running for page in tracked.sequence.pages})

    def check(self, deadlines: Mapping[str, float]) -> None:
        """Hold what was given up, or had a deadline, against the steps that it took; forget it."""
        assert self.lost == []
        heard = dict(self.heard)
        for name in deadlines.keys() & self.gone.keys():
            due = sum(began_s < deadlines[name] + SLACK_S for began_s in self.began_s)
            heard[name] = min(due, heard.get(name, due))
        for name, steps in heard.items():
            assert self.gone[name] - steps <= MOST_STEPS, (name, steps, self.gone)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for noted in (self.heard, self.gone, self.began_s, self._seen):
            noted.clear()
