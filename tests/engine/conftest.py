"""One engine on the tiny model for most tests of the API."""

import pytest

from tests.engine.workload import check_idle, small_engine


@pytest.fixture(scope="module")
def engine(tiny_model, program_cache):
    """An engine on the tiny model; what a test leaves behind fails the module."""
    with small_engine(tiny_model, program_cache) as engine:
        yield engine
        check_idle(engine)
