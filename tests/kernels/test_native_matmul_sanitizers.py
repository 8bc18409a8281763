"""Native matmul neither leaves its memory nor does what C++ leaves undefined."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rtp_jax.kernels.native.build import SOURCES
from rtp_jax.kernels.native.levels import levels_of_this_cpu

DRIVER = Path(__file__).with_name("matmul_sanitizers.cc")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-pthread")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LEVELS = [level for level in levels_of_this_cpu() if level.name in ("amx", "avx2", "portable")]


def build(folder: Path, level, driver: Path = DRIVER) -> Path:
    """Compile the driver and the plain sources, which need no header of XLA."""
    compiler, program = shutil.which("c++"), folder / f"{driver.stem}-{level.name}"
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    sources = [driver, *SOURCES.glob("matmul*.cc"), SOURCES / "prepare.cc"]
    command = [compiler, *FLAGS, *SANITIZERS, *level.flags, "-I", SOURCES, *sources, "-o", program]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_random_calls_are_clean(tmp_path, level):
    done = subprocess.run(
        [build(tmp_path, level)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_write_past_the_results_is_caught(tmp_path):
    broken, text = tmp_path / "broken.cc", DRIVER.read_text()
    right = "outputs.emplace_back(total * outer, "
    assert right in text
    broken.write_text(text.replace(right, "outputs.emplace_back(total * outer - 1, "))
    done = subprocess.run(
        [build(tmp_path, LEVELS[-1], broken)], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "AddressSanitizer" in done.stderr
