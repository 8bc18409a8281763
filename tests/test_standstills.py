"""What the machine did is told from what a process did."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.standstills import Standstills


@pytest.fixture
def watcher():
    made = Standstills()
    yield made
    made.stop()


def test_only_the_time_that_nobody_had_counts(watcher):
    began_s = time.monotonic()
    os.kill(watcher._process.pid, signal.SIGSTOP)  # as if the machine were held
    time.sleep(0.5)
    os.kill(watcher._process.pid, signal.SIGCONT)
    end_s = time.monotonic()
    time.sleep(0.2)
    still_s = watcher.seconds(began_s, end_s)
    assert 0.4 < still_s <= end_s - began_s
    assert watcher.spent_s(began_s, end_s) == pytest.approx(end_s - began_s - still_s)
    middle_s = (began_s + end_s) / 2
    assert 0.15 < watcher.seconds(began_s, middle_s) <= middle_s - began_s
    assert watcher.seconds(began_s - 10, began_s - 5) == 0


def test_cores_that_many_want_excuse_nobody(watcher):
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        assert min(still_in_a_second(watcher) for _ in range(3)) < 0.2  # it may be held, too
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def still_in_a_second(watcher: Standstills) -> float:
    began_s = time.monotonic()
    time.sleep(1.0)
    return watcher.seconds(began_s, time.monotonic())
