"""Tuned tilings: what a table says is used, and nothing else."""

import json

import pytest

from bench.gpu import tune
from bench.gpu.results import Results
from rtp_jax.kernels.quantized_matmul.mosaic_plan import Tiling, default_tiling
from rtp_jax.kernels.tuned import FOLDER, key_of, tuned
from rtp_jax.quant.schemes import SCHEMES

SIZES = {"tokens": 8, "outer": 512, "inner": 1024}
KEY = key_of(scheme="int8", group=None, **SIZES)


@pytest.fixture
def table(tmp_path):
    """Write the table of a run in which one tiling won clearly and one did not."""

    def write(default_milliseconds: float):
        row = {"status": "ok", "key": KEY, "tiling": [2, 64, 8, 128, 3], "milliseconds": 1.0}
        results = Results(tmp_path / "run", "kernels", dry=True, budget_s=1)
        results.content["rows"] = {"tune/x": {**row, "default_milliseconds": default_milliseconds}}
        tune.write_table(results, tmp_path)
        return tmp_path

    return write


def test_a_winner_is_found_by_what_it_was_measured_for(table):
    folder = table(1.5)
    assert tuned("quantized_matmul", KEY, folder=folder) == (2, 64, 8, 128, 3)
    other = key_of(scheme="int8", group=None, **{**SIZES, "tokens": 16})
    assert tuned("quantized_matmul", other, folder=folder) is None
    assert tuned("paged_attention", KEY, folder=folder) is None


def test_a_narrow_winner_is_left_out(table):
    assert tuned("quantized_matmul", KEY, folder=table(1.01)) is None


def test_without_a_table_nothing_is_tuned(tmp_path):
    assert tuned("quantized_matmul", KEY, folder=tmp_path) is None


def test_tables_in_the_package_have_whole_tilings():
    for path in FOLDER.glob("*.json"):
        for row in json.loads(path.read_text())["tilings"]["quantized_matmul"].values():
            assert len(row["tiling"]) == len(Tiling._fields)
    assert len(default_tiling(SCHEMES["int8"], **SIZES)) == len(Tiling._fields)
