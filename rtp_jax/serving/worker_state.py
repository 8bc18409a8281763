"""What a worker tells routers: who it is, how busy it is, and which pages it holds.

A stream begins with the facts, a load and a snapshot of the pages, or what happened since the event
that the router knows.  A router that reads slowly holds up only its own stream: what it missed is
still there, or it gets a new snapshot.  Nothing waits for a router.  `worker_reports.py` reads it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import metadata

from rtp_jax.cache.page_events import Event, PageEvents
from rtp_jax.engine.info import Loads
from rtp_jax.engine.watched import StepSample, Watched
from rtp_jax.scheduler.backlog import Backlog
from rtp_jax.serving.door import Call
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.served import Served, transfer_of
from rtp_jax.wire import router_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["WorkerState"]
LOOK_S = 0.025  # how often something new is looked for
PERIOD_S = 1.0  # longest time between two loads, unless the router says another
SHORTEST_PERIOD_S = 0.05
EVENTS_PER_REPORT = 8192  # of at most 24 bytes each
MAX_STEPS = 64  # samples in a load


class WorkerStateService:
    """Reports one engine to any number of routers."""

    def __init__(self, generation: GenerationService):
        self._generation = generation

    async def Watch(self, request: pb.WatchRequest, call: Call) -> AsyncIterator[pb.WorkerReport]:
        """Report until the router leaves, or the worker ends."""
        engine = self._generation.engine_for("")
        watched = _watched(engine)
        pages = _Pages(watched.pages, request.from_event if self._knows(request) else 0)
        period_s = max(request.period_s or PERIOD_S, SHORTEST_PERIOD_S)
        role = said = None
        said_s, num_steps = 0.0, watched.steps.num_steps
        while not self._generation.ended:
            now_s = time.monotonic()
            if role != (role := transfer_of(engine).role):  # all else stays as it is
                yield pb.WorkerReport(facts=self._facts(engine))
            seen = engine.loads(), engine.backlog(), self._generation.draining
            if seen != said or now_s - said_s >= period_s:
                steps, num_steps = watched.steps.since(num_steps)
                said, said_s = seen, now_s
                yield pb.WorkerReport(load=_load(*seen, steps))
            for events in pages.news():
                yield pb.WorkerReport(events=events)
            await asyncio.sleep(LOOK_S)

    async def SetRole(self, request: pb.SetRoleRequest, call: Call) -> pb.SetRoleResponse:
        """Take another role; what runs goes on as it began."""
        engine = self._generation.engine_for("")
        return pb.SetRoleResponse(role=transfer_of(engine).set_role(request.role))

    def _knows(self, request: pb.WatchRequest) -> bool:
        return request.epoch == self._generation.engine_for("").info.epoch

    def _facts(self, engine: Served) -> pb.WorkerFacts:
        info, watched, transfer = engine.info, _watched(engine), transfer_of(engine)
        return pb.WorkerFacts(
            epoch=info.epoch,
            role=transfer.role,
            model=info.name,
            layout=transfer.layout.fingerprint if transfer.exchanges_pages else b"",
            page_size=info.page_size,
            page_key=watched.page_key,
            model_epoch=watched.model_epoch,
            kv_scheme=watched.kv_scheme,
            max_model_len=info.max_model_len,
            max_num_seqs=info.max_num_seqs,
            num_pages=info.num_pages - 1,
            max_num_batched_tokens=watched.max_num_batched_tokens,
            version=metadata.version("rtp_jax"),
            prefix_caching=watched.prefix_caching,
            fingerprint=info.fingerprint,
        )


class _Pages:
    """What one router has not been told of the pages."""

    def __init__(self, events: PageEvents, next_event: int):
        self._events = events
        self._next = next_event

    def news(self) -> Iterator[pb.PageEvents]:
        """Tell what happened since the last time, or everything from the start."""
        events = self._events.since(self._next)
        if events is None:
            yield from self._snapshot()
            return
        for at in range(0, len(events), EVENTS_PER_REPORT):
            some = events[at : at + EVENTS_PER_REPORT]
            yield pb.PageEvents(first_event=self._next, events=map(_event, some))
            self._next += len(some)

    def _snapshot(self) -> Iterator[pb.PageEvents]:
        self._next, events = self._events.snapshot()
        for at in range(0, max(len(events), 1), EVENTS_PER_REPORT):
            yield pb.PageEvents(
                first_event=self._next - 1,
                snapshot=True,
                more=at + EVENTS_PER_REPORT < len(events),
                events=map(_event, events[at : at + EVENTS_PER_REPORT]),
            )


def _watched(engine: Served) -> Watched:
    assert engine.watched is not None, "a router has no reports of its own"
    return engine.watched


def _event(event: Event) -> pb.PageEvent:
    return pb.PageEvent(kind=int(event.kind), tier=int(event.tier), key=event.key)  # pyright: ignore


def _load(
    loads: Loads, backlog: Backlog, draining: bool, steps: Sequence[StepSample]
) -> pb.WorkerLoad:
    message = pb.WorkerLoad(
        num_running=loads.num_running,
        num_waiting=loads.num_waiting,
        num_free_pages=loads.num_free_pages,
        num_cached_pages=loads.num_cached_pages,
        prefill_tokens=backlog.prefill_tokens,
        decode_tokens=backlog.decode_tokens,
        num_decoding=backlog.num_decoding,
        draining=draining,
    )
    for step in steps[-MAX_STEPS:]:
        message.steps.add(
            prefill_tokens=step.prefill_tokens,
            num_decoding=step.num_decoding,
            context_tokens=step.context_tokens,
            seconds=step.seconds,
        )
    return message
