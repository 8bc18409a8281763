"""The garbage collector is as it was after a start, also after one that failed."""

import gc

import pytest

from rtp_jax.engine.collection import collection_paused
from rtp_jax.errors import NotFound


@pytest.fixture(params=[True, False])
def enabled(request):
    """Set the collector, and leave it as it was."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_nothing_is_collected_meanwhile(enabled):
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


def test_a_failure_leaves_it_as_it_was(enabled):
    with pytest.raises(NotFound), collection_paused():
        raise NotFound("RTPJ-0000 NOTHING: a test.")
    assert gc.isenabled() == enabled
