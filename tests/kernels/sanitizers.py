"""Builds and runs the C++ drivers that call native kernels under sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rtp_jax.kernels.native.build import SOURCES
from rtp_jax.kernels.native.levels import Level, levels_of_this_cpu

FLAGS = ("-std=c++17", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-pthread")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LEVELS = [level for level in levels_of_this_cpu() if level.name in ("amx", "avx2", "portable")]


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


def run_broken(
    folder: Path, driver: Path, pattern: str, right: str, wrong: str
) -> subprocess.CompletedProcess:
    """Run a driver in which one allocation has become too short."""
    text, broken = driver.read_text(), folder / "broken.cc"
    assert right in text
    broken.write_text(text.replace(right, wrong))
    return run(folder, LEVELS[-1], broken, pattern)
