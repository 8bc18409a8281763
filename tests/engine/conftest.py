"""One folder of compiled programs for all tests of a session, and one engine for most of them."""

import pytest

from tests.engine.workload import check_idle, small_engine


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory):
    """Where engines of this session keep their programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def engine(tiny_model, program_cache):
    """An engine on the tiny model; what a test leaves behind fails the module."""
    with small_engine(tiny_model, program_cache) as engine:
        yield engine
        check_idle(engine)
