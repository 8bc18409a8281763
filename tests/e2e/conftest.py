"""How a test of several workers begins and ends, and what it says of the machine if it fails.

Those that use a pair of workers have the fixture `pair` in their file.
"""

import time

import pytest

from tests.standstills import standstills


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say in the report of a failure how long the machine stood still meanwhile."""
    report = yield
    if report.failed:
        now_s = time.monotonic()
        still_s = standstills().seconds(now_s - call.duration, now_s)
        report.sections.append(("machine", f"It stood still for {still_s:.2f} s of this."))
    return report


def pytest_terminal_summary(terminalreporter):
    """Say at the end how much time the bounds left out."""
    still_s = standstills().seconds()
    if still_s > 0:
        terminalreporter.write_line(f"The machine stood still for {still_s:.2f} s.")


@pytest.fixture(autouse=True)
def forgotten(request):
    """Begin with empty prefix caches, and end with nothing left."""
    standstills()
    if "pair" not in request.fixturenames:
        yield
        return
    pair = request.getfixturevalue("pair")
    pair.forget()
    yield
    pair.check_idle()
