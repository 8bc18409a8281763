"""What the machine is doing besides us: idle cores, the share of others, memory of processes."""

import os
import time
from pathlib import Path

PROC = Path("/proc")
IDLE = 0.06  # busy share of all cores below which they count as idle


def cpu_seconds() -> tuple[float, float]:
    """Read (busy, total) seconds of all cores since the machine started."""
    ticks = os.sysconf("SC_CLK_TCK")
    numbers = [int(word) for word in (PROC / "stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / ticks, sum(numbers) / ticks


def tree(pid: int) -> list[int]:
    """List a process and all that it started, itself first."""
    found = [pid]
    for parent in found:
        for task in (PROC / str(parent) / "task").glob("*"):
            try:
                found += [int(word) for word in (task / "children").read_text().split()]
            except OSError:  # the thread has ended meanwhile
                continue
    return found


def process_seconds(pid: int) -> float:
    """CPU seconds of a process, its threads, and children that ended; 0.0 if it has gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


class Foreign:
    """Measures the share of the machine's CPU that was taken by others: not by us or our children.

    Its resolution is a scheduler tick for each process, so short blocks are only roughly known.
    """

    def __init__(self):
        """Begin."""
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        return *cpu_seconds(), sum(process_seconds(pid) for pid in tree(os.getpid()))

    def share(self) -> float:
        """Return the share since the object was made, in 0..1."""
        (busy, total, own), (busy0, total0, own0) = self._read(), self._before
        return min(max(0.0, busy - busy0 - (own - own0)) / max(total - total0, 1e-9), 1.0)


def wait_idle(limit_s: float, window_s: float = 1.0) -> float:
    """Wait until the cores are idle, at most `limit_s`; returns the busy share seen last."""
    end = time.monotonic() + limit_s
    while True:
        busy0, total0 = cpu_seconds()
        time.sleep(window_s)
        busy, total = cpu_seconds()
        share = (busy - busy0) / max(total - total0, 1e-9)
        if share < IDLE or time.monotonic() > end:
            return share


def _kilobytes(file: Path, field: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    return _kilobytes(PROC / "meminfo", "MemAvailable") * 1024


def memory(pids: list[int]) -> dict[str, float]:
    """Memory of processes together, in GiB.

    `peak_rss` adds their high-water marks, a mapped file's pages included; `pss` is what they hold
    now, with shared pages divided among those that share them.
    """
    peak = sum(_kilobytes(PROC / str(each) / "status", "VmHWM") for each in pids)
    pss = sum(_kilobytes(PROC / str(each) / "smaps_rollup", "Pss") for each in pids)
    return {"peak_rss_gib": peak / 2**20, "pss_gib": pss / 2**20}
