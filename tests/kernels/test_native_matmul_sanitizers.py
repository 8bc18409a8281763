"""Native matmul neither leaves its memory nor does what C++ leaves undefined."""

from pathlib import Path

import pytest

from tests.kernels.sanitizers import LEVELS, run, run_broken

DRIVER, SOURCES = Path(__file__).with_name("matmul_sanitizers.cc"), "matmul*.cc"


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_random_calls_are_clean(tmp_path, level):
    done = run(tmp_path, level, DRIVER, SOURCES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_write_past_the_results_is_caught(tmp_path):
    right, wrong = (
        "outputs.emplace_back(total * outer, ",
        "outputs.emplace_back(total * outer - 1, ",
    )
    done = run_broken(tmp_path, DRIVER, SOURCES, right, wrong)
    assert done.returncode
    assert "AddressSanitizer" in done.stderr
