"""The program for a real GPU, in its dry mode: rows resume, fail alone and have a schema."""

import json
import subprocess
import sys

import pytest

from bench.gpu import matmul_rows, run_all
from bench.gpu.results import Results, Row, Skip
from bench.gpu.timing import Limits, Scale
from bench.gpu.work import Sizes, Work, shrunk, works
from rtp_jax.models.registry import read_spec
from rtp_jax.quant.kv_schemes import kv_layers
from tools.every_scheme import EVERY_SCHEME
from tools.model_shapes import SIZES, config_of

FIGURES = {"milliseconds", "spread", "share_of_floor", "bound", "bytes", "flops"}


def dry(tmp_path, part: str, only: str) -> dict:
    """Run a part as a process of its own, which says how many threads XLA has; return its rows."""
    command = [sys.executable, run_all.__file__, "--part", part, "--dry"]
    command += ["--only", only, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    content = json.loads((tmp_path / f"{part}.json").read_text())
    assert done.returncode == 0, (content["rows"], done.stderr[-2000:])
    assert content["dry"]
    assert content["versions"]["jax"] != "absent"
    table = (tmp_path / f"{part}.md").read_text()
    assert all(name in table for name in content["rows"])
    return content


@pytest.fixture
def results(tmp_path):
    def make(budget_s: float = 60) -> Results:
        return Results(tmp_path, "kernels", dry=True, budget_s=budget_s)

    return make


def statuses(results: Results) -> dict[str, str]:
    return {name: row["status"] for name, row in results.content["rows"].items()}


def test_a_row_that_fails_stops_no_other_and_is_tried_again(results):
    calls = []

    def fails():
        calls.append("fails")
        raise RuntimeError("out of memory")

    def skips():
        raise Skip("not here")

    def works():
        calls.append("works")
        return {"milliseconds": 1.0}

    rows = [Row("a", fails), Row("b", skips), Row("c", works)]
    results().run(rows)
    again = results()
    again.run(rows)
    assert statuses(again) == {"a": "failed", "b": "skipped", "c": "ok"}
    assert calls == ["fails", "works", "fails"]
    assert "out of memory" in again.content["rows"]["a"]["note"]


def test_rows_without_time_are_left_for_the_next_run(results):
    rows = [Row("a", lambda: {"milliseconds": 1.0})]
    late = results(budget_s=0)
    late.run(rows)
    assert statuses(late) == {"a": "no time left"}
    later = results()
    later.run(rows)
    assert statuses(later) == {"a": "ok"}


def test_real_figures_do_not_continue_dry_ones(results, tmp_path):
    results().run([Row("a", lambda: {"milliseconds": 1.0})])
    real = Results(tmp_path, "kernels", dry=False, budget_s=60)
    assert real.content["rows"] == {}


def test_the_floor_is_whichever_takes_longer():
    limits = Limits(bytes_per_s=1e12, flops_per_s=1e14)
    assert limits.floor(num_bytes=1e9, flops=1e10) == (1e-3, "bytes")
    assert limits.floor(num_bytes=1e6, flops=1e12) == (1e-2, "flops")
    assert limits.floor(num_bytes=1e6, flops=1e12, narrow=True) == (5e-3, "flops")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_agree_with_the_engine(name):
    spec, sizes = read_spec(config_of(name)), Sizes.of(config_of(name))
    matrices = sizes.layers * sizes.layer_parameters
    matrices += sizes.head_parameters * (1 if sizes.tied else 2)
    norms = spec.num_parameters - matrices
    assert 0 < norms < 1e-3 * spec.num_parameters
    kv = Work(1, 1, 9).num_bytes(sizes, 2) - Work(1, 1, 8).num_bytes(sizes, 2)
    assert kv == kv_layers(spec.num_layers, "bfloat16").bytes_per_token(
        spec.num_kv_heads, spec.head_dim
    )


def test_a_causal_step_computes_half_of_the_square():
    sizes = Sizes.of(shrunk(config_of("qwen3-0.6b")))
    pairs = {
        new: Work(1, new, 0).flops(sizes)
        - 2 * (sizes.layers * sizes.layer_parameters * new + sizes.head_parameters)
        for new in (1, 3)
    }
    assert pairs[3] == 6 * pairs[1]  # 1 + 2 + 3 tokens are seen
    assert len(works(dry=False)) == 13


def test_kernels_are_checked_in_the_dry_mode(tmp_path):
    content = dry(tmp_path, "kernels", "check/matmul/int4_zeros/")
    rows = content["rows"]
    assert rows.keys() == {f"check/matmul/int4_zeros/{name}" for name in ("mosaic_gpu", "xla")}
    for row in rows.values():
        if row["status"] == "skipped":
            assert "jax 0.11" in row["note"]
        else:
            assert row["status"] == "ok"
            assert 0 < row["error_of_check"] < row["tolerance"]
    assert rows["check/matmul/int4_zeros/xla"]["status"] == "ok"
    assert content["facts"]["copy_GB_per_s"] > 0


def test_a_kernel_is_timed_in_the_dry_mode(tmp_path):
    (row,) = dry(tmp_path, "kernels", "matmul/bfloat16/small x 8/cublas")["rows"].values()
    assert row["status"] == "ok"
    assert row.keys() >= FIGURES


@pytest.mark.parametrize("scheme", EVERY_SCHEME)
def test_every_scheme_is_checked_and_timed_beside_bfloat16(scheme):
    for is_dry in (True, False):
        scale = Scale(is_dry, None, "cpu" if is_dry else "cuda")
        names = {row.name for row in matmul_rows.rows(scale, Limits(1, 1))}
        ours = {name for name in names if name.startswith(f"matmul/{scheme}/")}
        assert f"check/matmul/{scheme}/mosaic_gpu" in names
        assert len(ours) >= 2 if is_dry else len(ours) >= 8
        for name in ours:
            assert f"matmul/bfloat16/{name.split('/')[2]}/cublas" in names


def test_times_are_compared_with_bfloat16():
    rows = {
        "check/matmul/int8/xla": {"status": "ok"},
        "matmul/bfloat16/gate x 8/cublas": {"milliseconds": 3.0},
        "matmul/int8/gate x 8/xla": {"milliseconds": 2.0},
        "matmul/int8/down x 8/xla": {"milliseconds": 2.0},
        "matmul/fp8/gate x 8/mosaic_gpu": {"status": "failed"},
    }
    assert matmul_rows.over_bfloat16(rows) == {"matmul/int8/gate x 8/xla": 1.5}


@pytest.mark.parametrize(
    ("scheme", "num_bytes", "is_narrow"),
    [
        ("bfloat16", 2 * 128 * 256, False),
        ("int8", 128 * 256 + 128 * 4, False),
        ("int4_zeros-32", 128 * 128 + 128 * 8 * 5, False),
        ("fp8_block", 128 * 256 + 128 * 2 * 4, True),
    ],
)
def test_a_product_knows_its_bytes(scheme, num_bytes, is_narrow):
    product = matmul_rows.Product(8, 128, 256, scheme)
    assert (product.weight_bytes, product.is_narrow) == (num_bytes, is_narrow)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", run_all.PARTS)
def test_every_row_runs_dry(tmp_path, part):
    content = dry(tmp_path, part, "")
    assert content["rows"]
    assert {row["status"] for row in content["rows"].values()} <= {"ok", "skipped"}
    for name, row in content["rows"].items():
        if row["status"] == "ok" and not name.startswith("check/") and "generate" not in name:
            assert row.keys() >= {"milliseconds", "share_of_floor", "bound"}, name
