"""Servers for tests: around a fake engine, in a thread with a loop of their own."""

import asyncio
import threading
from dataclasses import dataclass, replace

from rtp_jax.config import ServerConfig
from rtp_jax.metrics import Metrics
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.http_door import HttpDoor
from rtp_jax.serving.server import Server
from rtp_jax.serving.worker_state import DESCRIPTOR as WORKER_STATE
from rtp_jax.serving.worker_state import WorkerStateService
from tests.serving.fake_engine import FakeEngine

CONFIG = ServerConfig(port=0)


@dataclass
class Running:
    """A server in its thread."""

    config: ServerConfig
    engine: object
    service: GenerationService
    metrics: Metrics
    server: Server
    loop: asyncio.AbstractEventLoop
    http: HttpDoor | None

    @property
    def url(self) -> str:
        """Where its HTTP door listens."""
        assert self.http is not None
        return f"http://127.0.0.1:{self.http.port}"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    def run(self, coroutine):
        """Run something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)


class Servers:
    """Starts servers and stops them all."""

    def __init__(self):
        self._stops = []

    def start(self, engine: object = None, **options) -> Running:
        """Start a server around an engine; False: one that still warms up."""
        engine = FakeEngine() if engine is None else engine
        config = replace(CONFIG, **options)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        running = asyncio.run_coroutine_threadsafe(self._start(config, engine), loop).result(30)

        def stop() -> None:
            if running.http is not None:
                running.run(running.http.stop())
            running.run(running.server.stop(0))
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

        self._stops.append(stop)
        return running

    async def _start(self, config: ServerConfig, engine: object) -> Running:
        service, metrics = GenerationService(config), Metrics(model_name="fake")
        server = Server(config, service, metrics, [(WorkerStateService(service), WORKER_STATE)])
        await server.start()
        http = None
        if config.http_port is not None:
            http = HttpDoor(config, service, server.health, metrics)
            await http.start(grace_s=0.5)
        if engine:
            service.engine = engine
            await server.health.say(True, "")
        loop = asyncio.get_running_loop()
        return Running(config, engine, service, metrics, server, loop, http)

    def stop(self) -> None:
        """Stop them all."""
        for stop in self._stops:
            stop()
