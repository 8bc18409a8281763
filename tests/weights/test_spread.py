"""Loading over meshes: every device has its part, every byte is read once, memory is bounded."""

import json

import pytest

from bench.synthetic import write
from rtp_jax.weights.loader import STAGING
from tests.weights.devices import run_processes, run_with_devices
from tests.weights.memory_load import KINDS
from tests.weights.models import MODELS
from tests.weights.written import save

SCRIPT = "tests.weights.spread_loads"


def save_all(folder):
    for kind in MODELS:
        (folder / kind).mkdir()
        save(folder / kind, MODELS[kind]().source, 3)


@pytest.mark.capability("load over a mesh")
def test_every_mesh_gets_its_parts_and_bytes_are_read_once(tmp_path):
    save_all(tmp_path)
    reports = json.loads(run_with_devices(8, "-m", SCRIPT, str(tmp_path)))
    assert {tuple(report["mesh"].values()) for report in reports} >= {(1,), (2,), (4,), (8,)}
    assert [report for report in reports if report["read"] != report["data"]] == []


@pytest.mark.capability("load over a mesh")
@pytest.mark.parametrize(
    ("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.full)]
)
def test_processes_share_the_files_and_exchange_what_others_need(tmp_path, processes, devices):
    save_all(tmp_path)
    printed = run_processes(processes, devices, "-m", SCRIPT, str(tmp_path))
    for reports in zip(*(json.loads(text.splitlines()[-1]) for text in printed), strict=True):
        assert sum(report["read"] for report in reports) == reports[0]["data"]
        assert max(report["read"] for report in reports) < 0.8 * reports[0]["data"]


@pytest.mark.parametrize(
    ("kind", "meshes"),
    [("dense", (8,)), ("moe", (4,))]
    + [pytest.param(kind, (1, 2, 4, 8), marks=pytest.mark.full) for kind in ("dense", "moe")],
)
def test_files_are_read_once_and_memory_is_what_devices_hold(tmp_path, kind, meshes):
    write(tmp_path / "model", KINDS[kind])
    for devices in meshes:
        arguments = ("-m", "tests.weights.memory_load", str(tmp_path / "model"), kind, str(devices))
        found = json.loads(run_with_devices(devices, *arguments))
        # The system counts all that the process reads, so a module that is imported late as well.
        assert found["files"] <= found["read"] < found["files"] + 500_000
        bound = found["held"] + STAGING + 48e6
        assert found["peak"] < bound
        assert bound < found["may_take"]  # what is promised
        assert bound < found["held"] + found["files"]  # which holding the sources would take
