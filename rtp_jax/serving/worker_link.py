"""One worker as a router knows it: its connection, its reports, and the requests that it has.

    connecting -> serving -> draining
        ^            |-> silent: its connection lives and it says nothing; requests go elsewhere
        '-- down <---'

Reports come at least twice a second, so a worker that stands still is found in seconds although its
connection lives; a dead one is found at once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grpc import aio

from rtp_jax.router.facts import PageEvents, Role, WorkerFacts, WorkerLoad
from rtp_jax.serving.client_messages import CHANNEL_OPTIONS, Tls, call_metadata
from rtp_jax.serving.journey import Journey
from rtp_jax.serving.status import error_of
from rtp_jax.serving.worker_reports import events_of, facts_of, load_of
from rtp_jax.wire import router_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub
from rtp_jax.wire.router_pb2_grpc import WorkerStateStub

logger = logging.getLogger(__name__)
PERIOD_S = 0.5
ROLE_TIMEOUT_S = 5.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 1.0
OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),  # a worker that comes back is found at once
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)
State = pb.WorkerStatus.State


@dataclass(frozen=True, kw_only=True, slots=True)
class Followers:
    """Who is told what a worker says."""

    facts: Callable[[WorkerFacts, str], str]  # with its model's fingerprint; why it is not used
    load: Callable[[str, WorkerLoad], None]
    events: Callable[[str, PageEvents], bool]  # False: watch anew
    next_event: Callable[[str], int]
    lost: Callable[[str], None]


@dataclass(slots=True, eq=False)
class Attempt:
    """One call of one request at a worker."""

    call: aio.Call
    lost: str = ""  # why it has to go on elsewhere


class WorkerLink:
    """The connection to one worker."""

    def __init__(self, address: str, followers: Followers, *, token: str | None, tls: Tls | None):
        if tls is None:
            self._channel = aio.insecure_channel(address, OPTIONS)
        else:
            self._channel = aio.secure_channel(address, tls.credentials(), OPTIONS)
        self.address = address
        self.generation = GenerationStub(self._channel)
        self._reports = WorkerStateStub(self._channel)
        self.metadata = call_metadata(token)
        self.state, self.reason = State.STATE_DOWN, "not connected yet"
        self.facts: pb.WorkerFacts | None = None
        self.load: pb.WorkerLoad | None = None
        self.heard_s = time.monotonic()
        self.num_sent = self.num_lost = self.prompt_tokens = self.cached_tokens = 0
        self.attempts: set[Attempt] = set()
        self._followers = followers
        self.departing = False  # it finishes what it has and gets nothing new
        self._refused = ""  # why it cannot be used, although it reports

    @property
    def usable(self) -> bool:
        """True if it answers requests that it gets now."""
        return self.state == State.STATE_SERVING

    @property
    def generates(self) -> bool:
        """True if it is usable for more than the pages of prompts."""
        return self.usable and self.facts is not None and self.facts.role != Role.PREFILL

    @property
    def leaving(self) -> bool:
        """True if what it ends may be its own end and not the request's."""
        return self.state != State.STATE_SERVING

    @contextlib.contextmanager
    def attempt(self, call: aio.Call) -> Iterator[Attempt]:
        """Note that a request is here while a block runs; after that its call is cancelled."""
        attempt = Attempt(call)
        self.attempts.add(attempt)
        self.num_sent += 1
        try:
            yield attempt
        finally:
            self.attempts.discard(attempt)
            call.cancel()

    def answered(self, journey: Journey) -> None:
        """Count a request that it brought to its end."""
        self.prompt_tokens += len(journey.request.prompt_token_ids)
        self.cached_tokens += journey.num_cached_tokens

    async def set_role(self, role: str) -> None:
        """Tell it to take another role; its facts will show it."""
        try:
            await self._reports.SetRole(
                pb.SetRoleRequest(role=role), timeout=ROLE_TIMEOUT_S, metadata=self.metadata
            )
        except aio.AioRpcError as error:
            logger.warning("worker %s does not become %s: %s", self.address, role, error.details())

    def let_go(self, reason: str) -> None:
        """Send its requests elsewhere."""
        for attempt in self.attempts:
            attempt.lost = attempt.lost or reason
            attempt.call.cancel()

    def depart(self) -> None:
        """Use it for nothing new, although it reports."""
        self.departing = True
        self._refused = self.reason = "it is no member any more"
        if self.state == State.STATE_SERVING:
            self.state = State.STATE_DRAINING

    def look(self, now_s: float, silent_s: float, *, others: bool) -> None:
        """Notice that it says nothing; its requests leave if others can take them."""
        quiet_s = now_s - self.heard_s
        if self.state in (State.STATE_SERVING, State.STATE_DRAINING) and quiet_s > silent_s:
            self.state, self.reason = State.STATE_SILENT, "it does not answer"
        if self.state == State.STATE_SILENT and others:
            self.let_go("it does not answer")

    async def run(self) -> None:
        """Follow its reports, until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            began_s = time.monotonic()
            try:
                await self._watch()
                reason = "its reports ended"
            except aio.AioRpcError as error:
                reason = str(error_of(error))
            self._down(reason)
            long = time.monotonic() - began_s > LONGEST_RETRY_S
            retry_s = FIRST_RETRY_S if long else min(2 * retry_s, LONGEST_RETRY_S)
            await asyncio.sleep(retry_s)

    async def close(self) -> None:
        """End its calls and the connection."""
        self.let_go("the router closes")
        await self._channel.close()

    async def _watch(self) -> None:
        epoch = self.facts.epoch if self.facts else ""
        request = pb.WatchRequest(
            epoch=epoch,
            from_event=self._followers.next_event(self.address) if epoch else 0,
            period_s=PERIOD_S,
        )
        call = self._reports.Watch(request, metadata=self.metadata)
        try:
            async for report in call:
                self.heard_s = time.monotonic()
                if report is None or not self._take(report):  # grpc gives None for what is garbled
                    return
        finally:
            call.cancel()

    def _take(self, report: pb.WorkerReport) -> bool:
        """Pass a report on; False: the reports have to begin anew."""
        kind = report.WhichOneof("report")
        if kind == "facts":
            self._take_facts(report.facts)
            if self._refused:
                self.state, self.reason = State.STATE_DOWN, self._refused
        elif kind == "load" and not self._refused:
            self.load = report.load
            self._followers.load(self.address, load_of(report.load))
            draining = report.load.draining
            self.state = State.STATE_DRAINING if draining else State.STATE_SERVING
            self.reason = "it finishes what it has" if draining else ""
        elif kind == "events" and not self._refused:
            return self._followers.events(self.address, events_of(report.events))
        return True

    def _take_facts(self, facts: pb.WorkerFacts) -> None:
        if facts.role in tuple(Role):
            self.facts = facts
            named = facts_of(facts, self.address)
            self._refused = self._followers.facts(named, facts.fingerprint)
        else:  # of a later version, or damaged on its way
            self.facts = None
            self._refused = f"its role {facts.role[:80]!r} is not known here"
            self._followers.lost(self.address)

    def _down(self, reason: str) -> None:
        """Its reports have ended: it is dead, restarts, or the connection broke."""
        self.state, self.reason, self.load = State.STATE_DOWN, reason, None
        self._followers.lost(self.address)
