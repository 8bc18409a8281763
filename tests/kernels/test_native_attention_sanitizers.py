"""Native attention neither leaves its memory nor does what C++ leaves undefined."""

from pathlib import Path

import pytest

from tests.kernels.sanitizers import LEVELS, run, run_broken

DRIVER, SOURCES = Path(__file__).with_name("attention_sanitizers.cc"), "attention.cc"


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_random_calls_are_clean(tmp_path, level):
    done = run(tmp_path, level, DRIVER, SOURCES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_read_past_the_pages_is_caught(tmp_path):
    right, wrong = "pages(rows * c.head_dim, stored)", "pages(rows * c.head_dim - 1, stored)"
    done = run_broken(tmp_path, DRIVER, SOURCES, right, wrong)
    assert done.returncode
    assert "AddressSanitizer" in done.stderr
