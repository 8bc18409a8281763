"""What all tests share: the tiny model, and a JSON record of a run for those who ask for one.

`pytest --results=FILE` writes when, on what and with which versions the tests ran, how many passed,
which were slow, and which capabilities they showed; `tools/capability_table.py` reads the last.
"""

import collections
import datetime
import gc
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import jax
import pytest

from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
VERSIONS = ("jax", "jaxlib", "flax", "numpy", "grpcio", "protobuf", "tokenizers", "sentencepiece")
NUM_SLOWEST = 20


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random Qwen3 checkpoint, which nobody writes to."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen3")


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the engines of this session keep their programs: each compiles once."""
    return tmp_path_factory.mktemp("programs")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--results`."""
    parser.addoption("--results", type=Path, help="write a JSON record of the run to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Record the run if somebody asked for it."""
    if config.getoption("--results"):
        config.pluginmanager.register(Record(config), "results")


def pytest_collection_finish() -> None:
    """Keep what was imported and collected, which is much and stays, out of garbage collections.

    Otherwise each of the large ones takes a second or two, wherever it falls.
    """
    gc.collect()
    gc.freeze()


class Record:
    """Collects what happened during a run and writes it when the run ends."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.began = time.monotonic()
        self.outcome: dict[str, str] = {}  # test -> passed, failed or skipped
        self.seconds: collections.Counter[str] = collections.Counter()
        self.capabilities: list[tuple[str, str]] = []  # capability, test

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember which test shows which capability."""
        for item in items:
            for marker in item.iter_markers("capability"):
                self.capabilities.append((marker.args[0], item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test: set-up, call or tear-down."""
        self.seconds[report.nodeid] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self.outcome[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the record, first under another name: a reader never sees half of it."""
        path: Path = self.config.getoption("--results")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.summary(int(exitstatus)), indent=1) + "\n")
        partial.replace(path)

    def summary(self, exit_status: int) -> dict:
        """Put together everything that a reader needs to repeat or compare the run."""
        slowest = self.seconds.most_common(NUM_SLOWEST)
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "selection": self.config.getoption("-m"),
            "machine": machine(),
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in VERSIONS},
            "exit_status": exit_status,
            "wall_s": round(time.monotonic() - self.began, 1),
            "counts": dict(collections.Counter(self.outcome.values())),
            "failed": [test for test, outcome in self.outcome.items() if outcome == "failed"],
            "slowest_s": {test: round(seconds, 2) for test, seconds in slowest},
            "capabilities": [
                {"name": name, "test": test, "outcome": self.outcome[test]}
                for name, test in self.capabilities
                if test in self.outcome  # not deselected
            ],
        }


def commit() -> str:
    """Name the state of the sources, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip()


def machine() -> dict[str, object]:
    """Describe what the tests ran on, without its name or its paths."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": jax.devices()[0].device_kind,
    }
