"""The native kernels, built for this machine once; their tests skip where that cannot be."""

import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library


@pytest.fixture(scope="session", autouse=True)
def native_kernels() -> str | None:
    """Load the best level that this machine runs, or say why none can be."""
    return library.load(native_cache())


@pytest.fixture(autouse=True)
def _skip_without_native(request: pytest.FixtureRequest, native_kernels: str | None) -> None:
    if native_kernels and "native_cpu" in request.node.name:
        pytest.skip(native_kernels)
