"""What the gate reads off the text of an optimized program."""

import dataclasses
import json
from pathlib import Path

import pytest

from tools.gpu_gate.hlo import Program
from tools.gpu_gate.report import Expectation, Kernel, Report, complaints, read_dumps

TEXT = (Path(__file__).parent / "optimized.hlo").read_text()
KV_BYTES = 1000 * 8 * 2
FITS = Expectation(kernels=("decode",), kv_bytes=10, max_temp_bytes=10)
DECODE = Kernel("decode", 168, 0, 0, 1000, wgmma=2, tma=3)
GOOD = Report(
    "good",
    custom_calls={"mosaic_gpu:decode": 1},
    kernels=[DECODE],
    donated_bytes=12,
    alias_bytes=12,
    temp_bytes=10,
)


def test_only_what_writes_the_pages_anew_is_a_copy():
    copies = [(one.name, operation) for one, operation in Program(TEXT).writes(KV_BYTES)]
    assert ("old.2", "copy") in copies
    assert ("flipped", "reverse") in copies
    assert {name for name, _ in copies} == {"old.2", "flipped", "done.1"}


def test_layers_copied_out_of_stacked_weights_are_counted():
    assert Program(TEXT).copied_layers([(2, 512, 64)], 1024) == 512 * 64 * 2
    assert Program(TEXT).copied_layers([(2, 512, 32)], 1024) == 0


def test_kernels_are_called_by_name():
    assert Program(TEXT).custom_calls() == {
        "mosaic_gpu:decode": 1,
        "mosaic_gpu:walk": 1,
        "write": 1,
    }


def test_nothing_is_wrong_with_a_good_report():
    assert complaints(GOOD, FITS) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"error": "ValueError: too large"}, "does not compile"),
        ({"custom_calls": {}}, "kernel decode is called 0 times and not 1"),
        ({"kernels": []}, "left no report of ptxas"),
        ({"kernels": [Kernel("decode", 255, 8, 8, 1000, 0, 0)]}, "spills 8 bytes"),
        ({"kernels": [Kernel("decode", 1, 0, 0, 240_000, 0, 0)]}, "of shared memory"),
        ({"alias_bytes": 2}, "2 of 12 donated bytes are aliased"),
        ({"donated_bytes": 2, "alias_bytes": 2}, "less than the pages"),
        ({"kv_copies": ["copy as old.2"]}, "the pages are copied: copy as old.2"),
        ({"temp_bytes": 11}, "11 temporary bytes, more than 10"),
    ],
)
def test_each_fault_is_named(broken, complaint):
    (found,) = complaints(dataclasses.replace(GOOD, **broken), FITS)
    assert complaint in found


def test_a_report_survives_the_way_between_processes():
    assert Report.of_json(json.loads(json.dumps(GOOD.as_json()))) == GOOD


def test_what_mosaic_leaves_is_read_and_removed(tmp_path):
    (tmp_path / "decode_0.ptxas").write_text(
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'decode_mosaic_gpu_kernel' for 'sm_90a'\n"
        "ptxas info    : Function properties for decode_mosaic_gpu_kernel\n"
        "    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 2 barriers, 24 bytes cumulative stack size,"
        " 1 bytes smem\n"
    )
    (tmp_path / "decode_0.resources.txt").write_text("Resources(smem_scratch_bytes=65536, x=1)")
    (tmp_path / "decode_0.ptx").write_text("wgmma.mma_async.x\ncp.async.bulk.tensor.y\n" * 2)
    (kernel,) = read_dumps(tmp_path)
    assert kernel == Kernel("decode", 255, 36, 24, 65537, wgmma=2, tma=2)
    assert list(tmp_path.iterdir()) == []
