"""Loading over meshes: every device has its part, every byte is read once, memory is bounded."""

import json
import math

import pytest

from bench.synthetic import write
from rtp_jax.weights.loader import STAGING
from tests.weights.devices import run_processes, run_with_devices
from tests.weights.memory_load import SHAPES
from tests.weights.written import save, tensors

SCRIPT = "tests.weights.spread_loads"


@pytest.mark.capability("load over a mesh")
def test_every_mesh_gets_its_parts_and_bytes_are_read_once(tmp_path):
    save(tmp_path, tensors(), 3)
    reports = json.loads(run_with_devices(8, "-m", SCRIPT, str(tmp_path)))
    assert {tuple(report["mesh"].values()) for report in reports} >= {(1,), (2,), (4,), (8,)}
    assert [report for report in reports if report["read"] != report["data"]] == []


@pytest.mark.capability("load over a mesh")
@pytest.mark.parametrize(
    ("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.full)]
)
def test_processes_share_the_files_and_exchange_what_others_need(tmp_path, processes, devices):
    save(tmp_path, tensors(), 3)
    printed = run_processes(processes, devices, "-m", SCRIPT, str(tmp_path))
    for reports in zip(*(json.loads(text.splitlines()[-1]) for text in printed), strict=True):
        assert sum(report["read"] for report in reports) == reports[0]["data"]
        assert max(report["read"] for report in reports) < 0.8 * reports[0]["data"]


def test_memory_is_what_devices_hold_and_little_more(tmp_path):
    write(tmp_path / "model", SHAPES)
    files = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    largest = max(math.prod(shape) for shape in SHAPES.tensors().values()) * 4
    for devices in (1, 8):
        arguments = ("-m", "tests.weights.memory_load", str(tmp_path / "model"), str(devices))
        report = json.loads(run_with_devices(devices, *arguments))
        bound = report["held"] + STAGING + 48e6
        assert report["peak"] < bound
        assert bound < report["held"] + 2 * largest + 256e6  # what is promised
        assert bound < report["held"] + files  # which holding the sources would take
