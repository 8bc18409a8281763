"""What the machine did is told from what a process did."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.standstills import Standstills

SPIN = "while True: pass"


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


def test_a_process_that_stands_still_excuses_nobody(watcher):
    held = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        began_s = time.monotonic()
        held.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        assert watcher.spent_s(began_s, time.monotonic()) > 0.4
    finally:
        held.kill()
        held.wait()


def test_cores_that_many_want_excuse_nobody(watcher):
    spinning = [
        subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        began_s = time.monotonic()
        time.sleep(1.0)
        assert watcher.spent_s(began_s, time.monotonic()) > 0.8
    finally:
        for process in spinning:
            process.kill()
            process.wait()
