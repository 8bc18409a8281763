"""What a router knows of its workers and requests, as a message and as text for people."""

import asyncio
import time
from collections.abc import Iterator
from importlib import metadata

from google.protobuf import json_format

from rtp_jax.serving.door import Call
from rtp_jax.serving.routed import RoutedEngine
from rtp_jax.serving.worker_link import WorkerLink
from rtp_jax.serving.workers import Workers
from rtp_jax.wire import router_pb2 as pb

STATE = pb.WorkerStatus.State
WORD_OF = {
    STATE.STATE_SERVING: "serving",
    STATE.STATE_DRAINING: "draining",
    STATE.STATE_SILENT: "silent",
    STATE.STATE_DOWN: "down",
}
READ_TIMEOUT_S = 2.0
COLUMNS = ("worker", "state", "role", "running", "waiting", "pages free", "cached", "known")
COLUMNS += ("sent", "open", "lost", "hit rate")


class StatusSource:
    """Where status is read from; it fills while the router starts."""

    def __init__(self):
        self.workers: Workers | None = None
        self.engine: RoutedEngine | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._started_s = time.monotonic()

    def message(self) -> pb.GetStatusResponse:
        """Say what is known; on the router's loop."""
        workers, engine = self.workers, self.engine
        answer = pb.GetStatusResponse(
            version=metadata.version("rtp_jax"), uptime_s=time.monotonic() - self._started_s
        )
        if workers is None:
            return answer
        answer.model = workers.model
        answer.policy = workers.placing.router.settings.policy
        answer.num_waiting = workers.placing.router.num_waiting
        for link in workers.links.values():
            answer.workers.append(self._worker(link, workers))
        answer.prompt_tokens = sum(link.prompt_tokens for link in workers.links.values())
        answer.cached_tokens = sum(link.cached_tokens for link in workers.links.values())
        if engine is not None:
            answer.num_open, answer.num_requests = len(engine.journeys), engine.num_requests
            answer.num_resumed, answer.num_failed = engine.num_resumed, engine.num_failed
        return answer

    def from_thread(self) -> pb.GetStatusResponse:
        """Say what is known; from any thread but the loop's."""
        if self.loop is None:
            return self.message()
        return asyncio.run_coroutine_threadsafe(self._soon(), self.loop).result(READ_TIMEOUT_S)

    async def _soon(self) -> pb.GetStatusResponse:
        return self.message()

    def _worker(self, link: WorkerLink, workers: Workers) -> pb.WorkerStatus:
        return pb.WorkerStatus(
            address=link.address,
            state=link.state,
            reason=link.reason,
            facts=link.facts,
            load=link.load,
            load_age_s=time.monotonic() - link.heard_s,
            num_open=len(link.attempts),
            num_sent=link.num_sent,
            num_lost=link.num_lost,
            prompt_tokens=link.prompt_tokens,
            cached_tokens=link.cached_tokens,
            num_known_pages=workers.num_known_pages(link.address),
        )


class RouterStatusService:
    """Answers `RouterStatus`."""

    def __init__(self, source: StatusSource):
        self._source = source

    async def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> pb.GetStatusResponse:
        """Say what this router knows."""
        return self._source.message()


def as_text(status: pb.GetStatusResponse) -> str:
    """Show status to people: a line about the router, and one for each worker."""
    rows = [COLUMNS, *(tuple(_cells(worker)) for worker in status.workers)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    reasons = [f"{each.address}: {each.reason}" for each in status.workers if each.reason]
    return "\n".join([headline(status), "", *lines, *(["", *reasons] if reasons else [])])


def as_json(status: pb.GetStatusResponse) -> str:
    """Show status to programs, by the names of `router.proto`."""
    return json_format.MessageToJson(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def headline(status: pb.GetStatusResponse) -> str:
    """Show what a router does, in one line."""
    return (
        f"router of {status.model or 'no model yet'}, policy {status.policy or '-'}, up"
        f" {status.uptime_s:.0f} s: {status.num_requests} requests, {status.num_open} open,"
        f" {status.num_waiting} waiting, {status.num_resumed} resumed, {status.num_failed} failed,"
        f" hit rate {rate(status.cached_tokens, status.prompt_tokens)}"
    )


def _cells(worker: pb.WorkerStatus) -> Iterator[str]:
    yield worker.address
    yield WORD_OF.get(worker.state, "?")
    yield worker.facts.role or "-"
    load = worker.load
    yield f"{load.num_running}/{worker.facts.max_num_seqs}"
    yield str(load.num_waiting)
    yield f"{load.num_free_pages}/{worker.facts.num_pages}"
    yield str(load.num_cached_pages)
    yield str(worker.num_known_pages)
    yield str(worker.num_sent)
    yield str(worker.num_open)
    yield str(worker.num_lost)
    yield rate(worker.cached_tokens, worker.prompt_tokens)


def rate(part: int, whole: int) -> str:
    """Show a share of tokens."""
    return f"{100 * part / whole:.0f} %" if whole else "-"
