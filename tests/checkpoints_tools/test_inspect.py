"""Inspecting: what the headers say, and the memory that the engine would plan."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoints_tools import stored
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide
from tests.checkpoints_tools.written import every_dtype, run, save, tiny
from tests.tiny_model import weights

ROOT = Path(__file__).parent.parent.parent
KV_MB = 128


@pytest.fixture
def inspect(capsys):
    """Run `inspect --json` and return its answer."""

    def ask(*arguments) -> dict:
        assert run("inspect", *arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.mark.capability("checkpoint tools")
def test_only_headers_are_read(tmp_path, monkeypatch, inspect):
    source = tiny(tmp_path / "source", ml_dtypes.bfloat16)
    tensors = weights(np.random.default_rng(0))
    numbers = sum(array.size for array in tensors.values())

    def read(_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(stored.Place, "read", read)
    found = inspect(source, "--tensors")
    assert found["architecture"] == "Qwen3ForCausalLM"
    assert found["dtypes"] == {"bfloat16": {"numbers": numbers, "bytes": 2 * numbers}}
    assert found["bytes"] == 2 * found["stored_numbers"] == 2 * numbers
    assert found["memory"]["parameters"] == numbers
    assert {t["name"]: t["shape"] for t in found["tensors"]} == {
        name: list(array.shape) for name, array in tensors.items()
    }
    assert found["largest_tensor"]["bytes"] == 2 * max(a.size for a in tensors.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32", "max_model_len": 256},
        {"quantization": "int8", "kv_memory": 10_000_000, "max_num_seqs": 4},
    ],
)
def test_one_device_is_what_the_engine_plans(tiny_model, inspect, options):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    (row, *_) = inspect(tiny_model, *flags)["memory"]["meshes"]
    plan = decide(str(tiny_model), EngineConfig.from_options(**options)).memory
    assert row["weight_bytes"] == plan.weight_bytes
    assert row["workspace_bytes"] == plan.workspace_bytes
    assert row["max_model_len"] == plan.max_model_len
    assert row["kv_bytes"] == pytest.approx(plan.kv_bytes, rel=0.05)  # of what is free just now
    assert row["kv_tokens"] == pytest.approx((plan.num_pages - 1) * plan.page_size, rel=0.05)


def test_a_process_of_its_own_can_plan():
    """Here the engine is imported already; a command imports what it needs itself."""
    command = [sys.executable, "-m", "checkpoints_tools", "inspect", "rtp-tiny", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [row["devices"] for row in json.loads(done.stdout)["memory"]["meshes"]] == [1, 2, 4, 8]


def measured(model, folder, programs, options) -> dict:
    """Let a process of its own serve, and say what it planned and what it took."""
    command = [sys.executable, "-m", "bench.memory", str(model), f"--kv-mb={KV_MB}"]
    command += [f"--set={name}={value}" for name, value in options.items()]
    report = folder / "memory.json"
    command += [f"--compile-cache={programs}", f"--json={report}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(report.read_text())


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_estimate_is_what_an_engine_takes(tiny_model, program_cache, tmp_path, inspect):
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags += ["--dtype=bfloat16", f"--kv-memory={KV_MB}000000", "--mesh=1"]
    (row,) = inspect(tiny_model, *flags)["memory"]["meshes"]
    found = measured(tiny_model, tmp_path, program_cache, options)
    if found["has_compiled"]:  # this time it finds its programs
        found = measured(tiny_model, tmp_path, program_cache, options)
    assert not found["has_compiled"]
    assert found["arrays_mb"] == found["planned_arrays_mb"] == round(row["array_bytes"] / 1e6, 3)
    assert found["estimate_mb"] == round(row["total_bytes"] / 1e6, 1)
    # Nearly all of it is Python and jax, which differ from machine to machine: docs/checkpoints.md
    # has models of a real size, which are within 5 %.
    assert 0.85 <= found["estimate_share"] <= 1.15


def test_devices_of_a_mesh_share_weights_and_heads(tmp_path, inspect):
    source = tiny(tmp_path / "source")  # 4 heads, 2 KV heads
    found = inspect(source, "--dtype=float32", "--memory=8", "--mesh=1,2,4,3", "--platform=cuda")
    one, two, four, three = found["memory"]["meshes"]
    shapes = {name: array.size for name, array in weights(np.random.default_rng(0)).items()}
    norms = 4 * sum(size for name, size in shapes.items() if "norm" in name)
    keys = 4 * sum(
        size for n, size in shapes.items() if n.endswith(("k_proj.weight", "v_proj.weight"))
    )
    whole = 4 * sum(shapes.values())
    assert one["weight_bytes"] == whole
    assert two["weight_bytes"] == norms + (whole - norms) // 2
    # Two KV heads for four devices: each has one, so keys and values are there twice.
    assert four["weight_bytes"] == norms + (whole - norms + keys) // 4
    assert "RTPJ-1106 PARTS_UNEVEN" in three["obstacle"]
    assert one["available_bytes"] == 8_000_000_000


def test_memory_that_is_too_small_is_an_obstacle(tmp_path, inspect):
    found = inspect(tiny(tmp_path / "source"), "--memory=0.1", "--mesh=1")
    assert "RTPJ-2104" in found["memory"]["meshes"][0]["obstacle"]


def test_what_the_engine_does_not_know_is_inspected_all_the_same(tmp_path, inspect, capsys):
    found = inspect(save(tmp_path / "source", every_dtype()))
    assert found["architecture"] == "X"
    assert "RTPJ-3205" in found["memory_unknown"]
    (tmp_path / "source" / "config.json").unlink()
    assert inspect(tmp_path / "source")["architecture"] is None
    assert run("inspect", tmp_path / "source", "--tensors") == 0
    words = capsys.readouterr().out
    assert "unknown: no config.json" in words
    assert "model.bf16.weight bfloat16 [7]" in words


def test_people_get_a_table(tiny_model, capsys):
    assert run("inspect", tiny_model, "--mesh", "1,2") == 0
    words = capsys.readouterr().out
    assert "Qwen3ForCausalLM" in words
    assert "KV tokens" in words
    assert len(words.splitlines()) == 10


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--mesh=0", "RTPJ-3615 MESH_INVALID"),
        ("--mesh=two", "RTPJ-3615 MESH_INVALID"),
        ("--max-num-seqs=many", "RTPJ-1202 SETTING_UNREADABLE"),
        ("--deterministic=perhaps", "RTPJ-1202 SETTING_UNREADABLE"),
        ("--dtype=int3", "RTPJ-1101 CONFIG_INVALID"),
    ],
)
def test_wrong_settings_end_with_two(tiny_model, capsys, option, error):
    assert run("inspect", tiny_model, option) == 2
    assert error in capsys.readouterr().err
