"""Native kernels neither leave their memory nor do what C++ leaves undefined."""

import pytest

from tests.kernels.sanitizers import DRIVERS, LEVELS, run_all


@pytest.fixture(scope="module", params=DRIVERS, ids=lambda driver: driver.name)
def ran(request, tmp_path_factory):
    """What came of a driver at each level, and of the broken one."""
    return run_all(tmp_path_factory.mktemp("sanitizers"), request.param)


@pytest.mark.parametrize("level", [level.name for level in LEVELS])
def test_random_calls_are_clean(ran, level):
    done = ran[level]
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_an_access_past_an_allocation_is_caught(ran):
    assert ran["broken"].returncode
    assert "AddressSanitizer" in ran["broken"].stderr
