"""What the tests of the doors share: running servers, and a client of one."""

from collections.abc import Iterator

import pytest

from rtp_jax import Engine
from rtp_jax.serving.client import Client
from tests.engine.built_in import ONE_PROGRAM
from tests.engine.workload import check_idle, small_engine
from tests.serving.routers import started_router
from tests.serving.started import Running, Servers


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Start servers that end with the test."""
    started = Servers()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Return one server around a fake engine, for all tests of a file."""
    started = Servers()
    yield started.start()
    started.stop()


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    """Return a client of `running`."""
    with Client(running.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def real_engine(tiny_model, program_cache):
    """Return a real engine on the tiny model; what a test leaves behind fails the session."""
    with small_engine(tiny_model, program_cache, served_model_name="fake") as engine:
        yield engine
        check_idle(engine)


@pytest.fixture(scope="module")
def built_in_engine(program_cache):
    """Return an engine on the built-in model, whose tokens do not hang on who shares a step."""
    options = {**ONE_PROGRAM, "compile_cache": str(program_cache)}
    with Engine("rtp-tiny", **options) as engine:
        yield engine
        check_idle(engine)


@pytest.fixture(scope="module")
def built_in(built_in_engine) -> Iterator[Running]:
    """Return a server around the built-in model."""
    started = Servers()
    yield started.start(built_in_engine, http_port=0)
    started.stop()


@pytest.fixture(scope="module")
def real(real_engine) -> Iterator[Running]:
    """Return a server around the real engine, for all tests of a file."""
    started = Servers()
    yield started.start(real_engine)
    started.stop()


@pytest.fixture(scope="session")
def engines(real_engine, tiny_model, program_cache):
    """Two engines on one model."""
    options = {"served_model_name": "fake"}
    with small_engine(tiny_model, program_cache, **options) as second:
        yield real_engine, second
        check_idle(second)


@pytest.fixture(scope="module")
def workers(engines):
    """Return their servers."""
    started = Servers()
    yield [started.start(engine, http_port=0) for engine in engines]
    started.stop()


@pytest.fixture
def router(workers, tiny_model):
    """Return a router over both."""
    with started_router(tiny_model, [each.address for each in workers], sees=2) as running:
        yield running


@pytest.fixture
def routed(router):
    """Return a client of the router."""
    with Client(router.address) as connected:
        yield connected


@pytest.fixture
def direct(workers):
    """Return a client of one of its workers."""
    with Client(workers[0].address) as connected:
        yield connected
