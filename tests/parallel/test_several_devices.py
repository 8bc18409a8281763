"""What needs several devices runs in a process that divides the CPU into eight.

The tests are in the files below, which this process does not collect: jax has one device here.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rtp_jax.serving.client import Client
from tests.e2e.pair import prefill_process

ROOT = Path(__file__).parent.parent.parent
RTP_TINY = ROOT / "rtp_jax" / "assets" / "rtp-tiny"
FILES = [
    "tests/models/goldens_on_devices.py",
    "tests/runner/steps_on_devices.py",
    "tests/runner/loads_on_devices.py",
    "tests/engine/engines_on_devices.py",
    "tests/e2e/pages_between_meshes.py",
]


def run_on_eight_devices(files: list[str], report: Path, selection: str) -> dict[str, list[str]]:
    """Run files of tests; give for each what its tests said: nothing where they passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, f"--junit-xml={report}", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout[-8000:] + done.stderr[-2000:]
    said: dict[str, list[str]] = {file: [] for file in files}
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["classname"].replace(".", "/") + ".py"
        file = next(one for one in files if one.endswith(name))
        wrong = [part for part in case if part.tag in ("failure", "error")]
        said[file].append("".join(f"{case.attrib['name']}: {part.text}" for part in wrong))
    assert done.returncode == any(map(any, said.values())), done.stdout[-8000:]
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list[str]]:
    """Run all files in one process, whose start is not cheap."""
    return run_on_eight_devices(FILES, tmp_path_factory.mktemp("devices") / "all.xml", "not full")


@pytest.mark.capability("tensor parallelism")
@pytest.mark.parametrize("file", FILES)
def test_several_devices_compute_what_one_does(said, file):
    assert said[file], "no test ran"
    assert not any(said[file]), "\n".join(said[file])


@pytest.mark.full
@pytest.mark.parametrize("file", FILES)
def test_several_devices_compute_what_one_does_in_every_way(file, tmp_path):
    said = run_on_eight_devices([file], tmp_path / "report.xml", "full")[file]
    assert said, "no test ran"
    assert not any(said), "\n".join(said)


@pytest.mark.full
def test_a_failure_over_there_is_a_failure_here(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import jax\n\n\n"
        "def test_eight():\n    assert len(jax.devices()) == 8\n\n\n"
        "def test_nine():\n    assert len(jax.devices()) == 9\n"
    )
    said = run_on_eight_devices([str(broken)], tmp_path / "report.xml", "")
    right, wrong = said[str(broken)]
    assert not right
    assert "assert 8 == 9" in wrong


def test_a_worker_divides_the_cpu_by_itself(program_cache):
    sizes = {"tensor_parallel_size": 2, "max_num_seqs": 8, "max_num_batched_tokens": 8}
    with (
        prefill_process(RTP_TINY, program_cache, role="both", **sizes) as (_, address),
        Client(address) as client,
    ):
        assert client.server_info().tensor_parallel_size == 2
        assert len(client.generate([5, 6, 7]).outputs[0].token_ids) > 0
