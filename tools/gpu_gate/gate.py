"""The gate: compiles a catalogue of programs for sm_90a, in processes of their own.

Read `catalogue.py` for what is compiled and expected, `report.py` for what is looked at.
"""

import collections
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.gpu_gate.dumps import SWITCHES
from tools.gpu_gate.plugins import MARK, environment, fetched
from tools.gpu_gate.report import Report

ROOT = Path(__file__).parents[2]
CATALOGUE = "tools.gpu_gate.catalogue"
WORKERS = 4  # at most; each takes about 1.5 GB
LAST_LINES = 20  # of what a worker printed, kept for the case that it dies

Progress = Callable[[Report], None]


def run(
    names: Sequence[str],
    *,
    module: str = CATALOGUE,
    workers: int | None = None,
    progress: Progress = lambda report: None,
) -> dict[str, Report]:
    """Compile programs by name and return their reports; a process that dies is a report too.

    Raises:
      CompilerAbsent: see `plugins.fetched`.
    """
    folder = fetched()
    count = workers or min(WORKERS, len(os.sched_getaffinity(0)), len(names))
    # Programs of one model lie together and cost alike: dealt out, every worker gets some of each.
    shares = [list(names[first::count]) for first in range(count)]
    with ThreadPoolExecutor(count) as executor:
        parts = executor.map(lambda share: _work(folder, module, share, progress), shares)
        found = {name: report for part in parts for name, report in part.items()}
    return {name: found[name] for name in names}


def _work(folder: Path, module: str, names: list[str], progress: Progress) -> dict[str, Report]:
    """Compile a share of the programs; after a death, go on with the program behind."""
    found: dict[str, Report] = {}
    while left := [name for name in names if name not in found]:
        ended = _start(
            folder, module, left, lambda one: (found.update({one.name: one}), progress(one))
        )
        died = next((name for name in left if name not in found), None)
        if died is not None:
            found[died] = Report(died, error=ended)
            progress(found[died])
    return found


def _start(folder: Path, module: str, names: list[str], take: Callable[[Report], object]) -> str:
    """Run one worker to its end, whatever that is, and say how it ended."""
    command = [sys.executable, "-m", "tools.gpu_gate.worker", module, *names]
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment(folder, ROOT), **SWITCHES},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                take(Report.of_json(json.loads(line.removeprefix(MARK))))
            else:
                last.append(line)
    return f"the compiler ended with {process.returncode}: {''.join(last)}"
