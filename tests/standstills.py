"""How long has the machine itself stood still?  What no process did is no process's fault.

A virtual machine is now and then held for seconds, and everything on it with it.  A small process
that does nothing but sleep notes when it slept far longer than it meant to; a bound on what a
server does within a second is then one on the seconds that there were.
"""

import atexit
import functools
import math
import subprocess
import sys
import threading
import time

SLEEP_S = 0.01
STILL_S = 0.1  # what a busy machine does not do to a process that wants no time, and goes first
WATCH = f"""
import contextlib, os, time
with contextlib.suppress(OSError, AttributeError):  # ahead of whoever wants the cores
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print("ready", flush=True)
parent, last_s = os.getppid(), time.monotonic()
while os.getppid() == parent:
    time.sleep({SLEEP_S})
    now_s = time.monotonic()
    if now_s - last_s > {STILL_S}:
        print(last_s, now_s, flush=True)
    last_s = now_s
"""


class Standstills:
    """Notes when the machine stands still, from when it is made."""

    def __init__(self):
        command = [sys.executable, "-I", "-S", "-c", WATCH]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._spans: list[tuple[float, float]] = []  # of time.monotonic
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it watches
        self._thread = threading.Thread(target=self._read, name="standstills", daemon=True)
        self._thread.start()

    def seconds(self, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """Return how much of a span of `time.monotonic` was no time at all."""
        time.sleep(5 * SLEEP_S)  # the last one may still be on its way
        spans = list(self._spans)
        return sum(max(0.0, min(until_s, end_s) - max(since_s, at_s)) for at_s, end_s in spans)

    def spent_s(self, since_s: float, until_s: float) -> float:
        """Return how much of a span was time that processes had."""
        return until_s - since_s - self.seconds(since_s, until_s)

    def stop(self) -> None:
        """End the process that watches."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            began_s, end_s = map(float, line.split())
            self._spans.append((began_s, end_s))


@functools.cache
def standstills() -> Standstills:
    """Return the one that watches for all tests, as there is one machine.

    Call it before what is to be timed: it notes nothing of the time before.
    """
    watcher = Standstills()
    atexit.register(watcher.stop)
    return watcher
