"""Builds and runs the C++ drivers that call native kernels under sanitizers."""

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from rtp_jax.kernels.native.build import SOURCES
from rtp_jax.kernels.native.levels import Level, levels_of_this_cpu

FLAGS = ("-std=c++17", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-pthread")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
HERE = Path(__file__).parent
LEVELS = [level for level in levels_of_this_cpu() if level.name in ("amx", "avx2", "portable")]


class Driver(NamedTuple):
    """A C++ program that calls kernels, and how to make one of its allocations too short."""

    name: str
    pattern: str  # of the kernels' sources
    right: str
    wrong: str

    @property
    def path(self) -> Path:
        """Return where the program is."""
        return HERE / f"{self.name}_sanitizers.cc"


DRIVERS = [
    Driver(
        "attention",
        "attention.cc",
        "pages(rows * c.head_dim, stored)",
        "pages(rows * c.head_dim - 1, stored)",  # which is read
    ),
    Driver(
        "matmul",
        "matmul*.cc",
        "outputs.emplace_back(total * outer, ",
        "outputs.emplace_back(total * outer - 1, ",  # which is written
    ),
]


def run_all(folder: Path, driver: Driver) -> dict[str, subprocess.CompletedProcess]:
    """Run a driver at each level, and as "broken" with one allocation that is too short.

    Each takes seconds to compile, so as many are under way as there are processors.
    """
    text, broken = driver.path.read_text(), folder / "broken.cc"
    assert driver.right in text
    broken.write_text(text.replace(driver.right, driver.wrong))
    jobs = {level.name: (level, driver.path) for level in LEVELS} | {"broken": (LEVELS[-1], broken)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            name: pool.submit(run, folder, level, path, driver.pattern)
            for name, (level, path) in jobs.items()
        }
        return {name: future.result() for name, future in runs.items()}


def run(folder: Path, level: Level, driver: Path, pattern: str) -> subprocess.CompletedProcess:
    """Compile a driver with the plain sources of `pattern`, which need no header of XLA; run it."""
    compiler, program = shutil.which("c++"), folder / f"{driver.stem}-{level.name}"
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    sources = [driver, *SOURCES.glob(pattern), SOURCES / "prepare.cc"]
    command = [compiler, *FLAGS, *SANITIZERS, *level.flags, "-I", SOURCES, *sources, "-o", program]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
