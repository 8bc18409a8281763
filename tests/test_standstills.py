"""What the machine did is told from what a process did."""

import os
import signal
import time

from tests.standstills import Standstills


def test_only_the_time_that_nobody_had_counts():
    watcher = Standstills()
    try:
        time.sleep(0.3)  # it has to start
        began_s = time.monotonic()
        os.kill(watcher._process.pid, signal.SIGSTOP)  # as if the machine were held
        time.sleep(0.5)
        os.kill(watcher._process.pid, signal.SIGCONT)
        end_s = time.monotonic()
        time.sleep(0.2)
        assert 0.4 < watcher.seconds(began_s, end_s) <= end_s - began_s
        middle_s = (began_s + end_s) / 2
        assert 0.15 < watcher.seconds(began_s, middle_s) <= middle_s - began_s
        assert watcher.seconds(began_s - 10, began_s - 5) == 0
    finally:
        watcher.stop()
