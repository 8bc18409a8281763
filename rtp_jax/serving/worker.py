"""One process, one engine, its doors: how a server starts, stays fit, and ends.

    bind -> build the engine -> canary -> SERVING -> SIGTERM: drain -> exit 0
                                             ├ the watchdog: engine lost -> exit 1
                                             └ the engine is to retire: drain -> exit 1

The port is bound first, so that a taken one is known before minutes of loading; until the engine is
there, requests are told to come back.  A second signal ends the process at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.descriptor import ServiceDescriptor

from rtp_jax.config import ServerConfig
from rtp_jax.errors import RtpError
from rtp_jax.metrics import Metrics
from rtp_jax.serving.door import Service
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.health import Watchdog, canary
from rtp_jax.serving.http_door import HttpDoor
from rtp_jax.serving.metrics_endpoint import MetricsEndpoint, Page, Probes
from rtp_jax.serving.served import Served
from rtp_jax.serving.server import Server

logger = logging.getLogger(__name__)
OK, FAILED = 0, 1
ABORT_GRACE_S = 2.0  # for aborted requests to say so to their clients
DRAIN_LOOK_S = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker is made of; `run` is its life."""

    config: ServerConfig
    build: Callable[[], Awaitable[Served]]  # loads and compiles; `in_thread` for what blocks
    metrics: Metrics
    say: Callable[[str], None]  # progress, one line at a time
    stall_timeout_s: float
    services: Callable[[GenerationService], Sequence[tuple[Service, ServiceDescriptor]]]
    pages: Mapping[str, Page] = field(default_factory=dict)  # beside the metrics
    routes: bool = False  # its engine is made of workers

    def run(self) -> int:
        """Serve until a signal or the loss of the engine; return the exit code."""
        return asyncio.run(_Life(self).live())


class _Life:
    """The state of a worker while it runs."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._service = GenerationService(worker.config, routes=worker.routes)
        self._ended = asyncio.Event()
        self._lost = ""  # why the engine is lost
        self._retired = ""  # why it ends although it still serves
        self._num_signals = 0
        self._http: HttpDoor | None = None

    async def live(self) -> int:
        worker = self._worker
        more = worker.services(self._service)
        server = Server(worker.config, self._service, worker.metrics, more)
        async with contextlib.AsyncExitStack() as stack:
            self._watch_signals(stack)
            if worker.config.http_port is not None:
                self._http = HttpDoor(worker.config, self._service, server.health, worker.metrics)
                stack.push_async_callback(self._http.stop)
                await self._http.start(grace_s=ABORT_GRACE_S)
                worker.say(f"http on {worker.config.host}:{self._http.port}")
            if worker.config.metrics_port is not None:
                endpoint = self._metrics_endpoint(server, worker.config.metrics_port)
                stack.callback(endpoint.close)
                worker.say(f"metrics on http://{worker.config.host}:{endpoint.port}/metrics")
            await server.start()
            worker.say(f"listening on {worker.config.host}:{server.port}")
            try:
                engine = await self._build(server)
            except RtpError:
                await server.stop(0)
                raise
            if engine is not None:
                await self._serve(server, engine)
                return FAILED if self._lost or self._retired else OK
            await server.stop(0)
            return OK

    async def _build(self, server: Server) -> Served | None:
        """Build the engine in another thread and try it; None if a signal came first."""
        began = time.monotonic()
        built = asyncio.ensure_future(self._worker.build())
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait({built, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not built.done():  # its thread is a daemon: nothing waits for it
            self._worker.say("stopped while loading")
            built.cancel()
            return None
        engine = built.result()
        seconds = await canary(engine)
        info = engine.info
        self._worker.metrics.model_name = info.name
        self._worker.metrics.cache_config = {  # vLLM's labels, which gateways read
            "block_size": str(info.page_size),
            "num_gpu_blocks": str(info.num_pages),
            "cache_dtype": info.kv_dtype,
        }
        self._service.engine = engine
        await server.health.say(True, "")
        self._worker.say(
            f"serving {info.name} on {self._worker.config.host}:{server.port},"
            f" {time.monotonic() - began:.1f} s to load, {seconds:.2f} s for a first answer"
        )
        return engine

    async def _serve(self, server: Server, engine: Served) -> None:
        timeout_s = self._worker.stall_timeout_s
        watchdog = Watchdog(engine, server.health, timeout_s, self._lose, self._retire)
        watching = asyncio.create_task(watchdog.run())
        try:
            await self._ended.wait()
            if not self._lost:
                await self._drain(server, engine)
        finally:
            watching.cancel()
            self._service.ended = True
            await server.health.say(False, "ended")
            http = [self._http.stop()] if self._http else []
            await asyncio.gather(server.stop(ABORT_GRACE_S), *http)
            if not self._lost:
                await asyncio.to_thread(engine.close)
                if engine.transfer is not None and engine.transfer.retires is not None:
                    self._retire(engine.transfer.retires)

    async def _drain(self, server: Server, engine: Served) -> None:
        """Take nothing new, and wait for what runs."""
        timeout_s = self._worker.config.drain_timeout_s
        self._service.draining = True
        server.health.draining = True
        await server.health.say(False, "draining")
        engine.stop_admitting()
        self._worker.say(f"draining: {_num_live(engine)} requests left, at most {timeout_s:g} s")
        until = time.monotonic() + timeout_s
        while (num_left := _num_live(engine)) and time.monotonic() < until and not self._lost:
            await asyncio.sleep(DRAIN_LOOK_S)
        engine.abort([*self._service.live_ids])
        self._worker.say(f"drained, {num_left} requests aborted" if num_left else "drained")

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._worker.say(f"the engine is lost: {reason}")
        self._ended.set()

    def _retire(self, reason: str) -> None:
        if not self._retired:
            self._retired = reason
            self._worker.say(f"retiring: {reason}")
            self._ended.set()

    def _watch_signals(self, stack: contextlib.AsyncExitStack) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals belong to whoever runs us
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
            stack.callback(loop.remove_signal_handler, number)

    def _on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals > 1:
            self._worker.say("a second signal: gone")
            os._exit(FAILED)
        self._ended.set()

    def _metrics_endpoint(self, server: Server, port: int) -> MetricsEndpoint:
        def why_not_live() -> str:
            return self._lost or (server.health.reason if server.health.stalled else "")

        def why_not_ready() -> str:
            return "" if server.health.serving else server.health.reason

        probes = Probes(why_not_live, why_not_ready)
        registry = self._worker.metrics.registry
        host, pages = self._worker.config.host, self._worker.pages
        return MetricsEndpoint(host, port, registry, probes, pages)


def _num_live(engine: Served) -> int:
    """Count requests, and the pages that other workers have not fetched yet."""
    return engine.loads().num_open_requests + engine.num_offers


async def in_thread(build: Callable[[], Served]) -> Served:
    """Run a function in a daemon thread, which keeps no process alive that was told to end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Served] = loop.create_future()

    def settle(engine: Served | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif engine is not None:
            done.set_result(engine)

    def run() -> None:
        with _Reported(lambda error: _tell(loop, settle, None, error)):
            engine = build()
            _tell(loop, settle, engine, None)

    threading.Thread(target=run, name="rtp-build", daemon=True).start()
    return await done


class _Reported:
    """Carries whatever leaves a block over to somebody who can raise it."""

    def __init__(self, report: Callable[[BaseException], None]):
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        if error is not None:
            self._report(error)
        return True


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable, *result: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(settle, *result)
