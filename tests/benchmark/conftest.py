"""Servers to measure: ours around a fake engine, and a small OpenAI-compatible one."""

from collections.abc import Iterator

import pytest

from tests.benchmark.openai_fake import OpenAiFake
from tests.serving.started import Running, Servers


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[Running]:
    """Return a gRPC server around a fake engine: 256 token ids, 3 prompt tokens always cached."""
    servers = Servers()
    yield servers.start()
    servers.stop()


@pytest.fixture
def http_server() -> Iterator[OpenAiFake]:
    """Return an OpenAI-compatible server in a thread of its own."""
    server = OpenAiFake()
    yield server
    server.stop()
