"""A router for tests, in a thread with a loop of its own, before servers of the same process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rtp_jax import SamplingParams
from rtp_jax.config import ServerConfig
from rtp_jax.metrics import Metrics
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.http_door import HttpDoor
from rtp_jax.serving.metrics_endpoint import MetricsEndpoint, Probes
from rtp_jax.serving.route_command import DESCRIPTOR, Plan, start
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.routed import RoutedEngine
from rtp_jax.serving.router_status import RouterStatusService, StatusSource
from rtp_jax.serving.server import Server
from rtp_jax.serving.status_page import metrics_of_router, pages_of

CONFIG = RouteConfig(worker_silent_s=1.5, no_worker_s=1.0)
LONG = SamplingParams(max_tokens=250, temperature=1.0, seed=11, ignore_eos=True, logprobs=1)


@dataclass
class RunningRouter:
    """A router in its thread."""

    engine: RoutedEngine
    source: StatusSource
    server: Server
    http: HttpDoor
    page: MetricsEndpoint
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    def run(self, coroutine):
        """Run something on its loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def set_members(self, members) -> None:
        """Say which workers there are."""

        async def change() -> None:
            self.engine.workers.set_members(members)

        self.run(change())

    def stop(self) -> None:
        """End it, and everything that it opened."""
        self.page.close()
        self.run(self.http.stop())
        self.run(self.server.stop(0))
        self.run(self.engine.workers.close())
        self.run(asyncio.sleep(0.05))  # for calls that were cancelled to notice
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()


def until(done: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@contextlib.contextmanager
def started_router(
    folder: Path, addresses: Sequence[str], *, sees: int = 1, **options: object
) -> Iterator[RunningRouter]:
    """Start a router, wait until it sees so many workers, and stop it in the end."""
    running = start_router(folder, addresses, **options)
    try:
        until(lambda: len(running.engine.workers.placing.router.workers) >= sees)
        yield running
    finally:
        running.stop()


def start_router(folder: Path, addresses: Sequence[str], **options: object) -> RunningRouter:
    """Start a router over servers of the model named "fake" and wait until one is found."""
    config = replace(CONFIG, workers=",".join(addresses), **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    plan = Plan(folder, "fake", "", config)

    async def open_doors() -> RunningRouter:
        source, metrics = StatusSource(), Metrics(model_name="fake")
        metrics_of_router(source, metrics.registry)
        served = ServerConfig(port=0, http_port=0)
        service = GenerationService(served, routes=True)
        server = Server(served, service, metrics, [(RouterStatusService(source), DESCRIPTOR)])
        await server.start()
        http = HttpDoor(served, service, server.health, metrics)
        await http.start(grace_s=0.5)
        service.engine = engine = await start(plan, source)
        await server.health.say(True, "")
        probes = Probes(lambda: "", lambda: "")
        page = MetricsEndpoint("127.0.0.1", 0, metrics.registry, probes, pages_of(source))
        return RunningRouter(engine, source, server, http, page, loop, thread)

    return asyncio.run_coroutine_threadsafe(open_doors(), loop).result(30)


def check_same(mine: dict[int, tuple], theirs: dict[int, tuple]) -> None:
    """Compare two collected streams."""
    assert mine.keys() == theirs.keys()
    for index, (ids, text, logprobs, end) in mine.items():
        expected = theirs[index]
        assert (ids, text, end) == (expected[0], expected[1], expected[3])
        assert logprobs == pytest.approx(expected[2], abs=1e-3)


def collected(stream) -> dict[int, tuple]:
    """Put a stream together: ids, text, logprobs and end of each completion."""
    parts = {}
    for output in stream:
        for part in output.outputs:
            ids, text, logprobs, _ = parts.get(part.index, ([], "", [], None))
            new = [next(iter(table.items())) for table in part.logprobs or []]
            assert not part.logprobs or [id for id, _ in new] == part.token_ids
            logprobs = logprobs + [entry.logprob for _, entry in new]
            end = part.finish_reason and (part.finish_reason, part.stop_reason)
            parts[part.index] = ids + part.token_ids, text + part.text, logprobs, end
    return parts
