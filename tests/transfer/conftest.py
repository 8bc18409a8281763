"""Prefill workers without a model, and the peers that whoever pulls knows."""

import contextlib

import pytest

from rtp_jax.transfer.peer import Peers
from tests.transfer.served import LAYOUT, FakePrefiller, KvServer, until


@pytest.fixture
def peers():
    made = Peers(LAYOUT)
    yield made
    made.close()


@pytest.fixture
def start():
    """Start prefill workers that end with the test, with nothing left in any of them."""
    with contextlib.ExitStack() as stack:
        started = []

        def begin(*, frame_bytes=1 << 20, port=0, **options) -> KvServer:
            server = KvServer(FakePrefiller(**options), frame_bytes=frame_bytes, port=port)
            started.append(stack.enter_context(server))
            return started[-1]

        yield begin
        for server in started:
            assert until(lambda server=server: server.prefiller.offers.counts.open == 0)
            assert server.prefiller.offers.counts.bytes == 0
