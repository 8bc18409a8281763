"""What the tests of the doors share: running servers, and a client of one."""

from collections.abc import Iterator

import pytest

from rtp_jax.serving.client import Client
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
