"""The native kernels, built for this machine once; their tests skip where that cannot be."""

import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.levels import NAMES, levels_of_this_cpu

# Levels that every test run builds: the best one here, that of most laptops, and the plain one.
# Those between share their code; `make test-full` has them too.
ALWAYS = {levels_of_this_cpu()[0].name, "avx2", "portable"}


@pytest.fixture(scope="session", autouse=True)
def native_kernels() -> str | None:
    """Load the best level that this machine runs, or say why none can be."""
    return library.load(native_cache())


@pytest.fixture(autouse=True)
def _skip_without_native(request: pytest.FixtureRequest, native_kernels: str | None) -> None:
    if native_kernels and "native_cpu" in request.node.name:
        pytest.skip(native_kernels)


def loaded(level: str) -> library.Library:
    """Load a level, or skip the test without a compiler; sources that it refuses are a failure."""
    reason = library.load(native_cache(), level=level)
    if reason is not None and "compiler" in reason:
        pytest.skip(reason)
    assert reason is None
    found = library.loaded()
    assert found is not None
    return found


@pytest.fixture
def best_level() -> library.Library:
    """Load the best level that this processor runs."""
    return loaded("auto")


@pytest.fixture(
    params=[
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.full) for name in NAMES
    ]
)
def level(request: pytest.FixtureRequest):
    """Load each level that this processor runs; afterwards programs meet the best one again."""
    if request.param not in [one.name for one in levels_of_this_cpu()]:
        pytest.skip(f"this processor does not run {request.param}")
    yield loaded(request.param)
    library.load(native_cache())
