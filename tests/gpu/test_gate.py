"""Every program of the quick set passes the gate, and the gate fails what is broken on purpose.

Compiled for an H200 on a CPU, in processes of their own.  `python -m tools.gpu_gate` does the same
by hand, and with `--full` for every program.
"""

import os

import jax
import pytest

from tests.gpu import mutants
from tools.gpu_gate import catalogue
from tools.gpu_gate.gate import run
from tools.gpu_gate.plugins import CompilerAbsent
from tools.gpu_gate.report import Report, complaints

MODULE = "tests.gpu.mutants"
# With the compiler in the cache and two cores: 3 minutes for all of it.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="GPU kernels need jax 0.11"),
]


def reports_of(names, **options) -> dict[str, Report]:
    """Compile, or skip where the compiler cannot be had; a run of all checks may not skip it."""
    try:
        return run(names, **options)
    except CompilerAbsent as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def broken() -> dict[str, Report]:
    return reports_of(list(mutants.catalogue()), module=MODULE)


@pytest.fixture(scope="module")
def quick() -> dict[str, Report]:
    return reports_of(catalogue.quick())


def test_the_kernel_that_is_whole_passes(broken):
    assert complaints(broken["kernel"], mutants.catalogue()["kernel"].expected) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("kernel that spills", f"kernel {mutants.NAME} spills"),
        ("kernel that fell back", f"kernel {mutants.NAME} is called 0 times"),
        ("step that copies", "the pages are copied"),
        ("step that copies", "temporary bytes, more than"),
        ("layers that are copied", "bytes of weights are copied"),
        ("weights that are turned", "bytes of weights are copied"),
    ],
)
def test_a_broken_program_is_caught(broken, name, complaint):
    found = complaints(broken[name], mutants.catalogue()[name].expected)
    assert any(complaint in one for one in found), found


def test_what_ptxas_says_is_read(broken):
    (kernel,) = broken["kernel"].kernels
    assert 0 < kernel.registers <= 255
    assert broken["kernel"].shared_bytes >= mutants.ROWS * mutants.COLUMNS * 4
    assert kernel.spill_bytes == 0


@pytest.mark.capability("GPU kernels")
@pytest.mark.parametrize("name", catalogue.quick())
def test_a_program_compiles_as_it_should(quick, name):
    assert complaints(quick[name], catalogue.catalogue()[name].expected) == []
