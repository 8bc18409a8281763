"""Merging an adapter: W + scale * B A in float64 is the reference."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoints_tools.written import assert_same, read, run, tiny

QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SHAPES = {QUERY: (128, 64), DOWN: (64, 128)}


def adapter(folder, *, rank=4, ranks=None, whole=None, marked="", **config):
    """Write an adapter as PEFT does; return its matrices."""
    random, tensors = np.random.default_rng(5), {}
    for module, (rows, columns) in SHAPES.items():
        of_module = (ranks or {}).get(module, rank)
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A{marked}.weight"] = random.standard_normal((of_module, columns))
        tensors[f"{prefix}.lora_B{marked}.weight"] = random.standard_normal((rows, of_module))
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    folder.mkdir()
    save_file({**tensors, **(whole or {})}, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return tensors


def expected(base, tensors, scales, marked=""):
    """Compute the merged matrices in float64, and round once."""
    merged = dict(base)
    for module, scale in scales.items():
        a, b = (
            tensors[f"base_model.model.{module}.lora_{side}{marked}.weight"].astype(np.float64)
            for side in "AB"
        )
        name = f"{module}.weight"
        merged[name] = (base[name].astype(np.float64) + scale * b @ a).astype(base[name].dtype)
    return merged


def assert_near(actual, reference):
    """Everything else is equal; the merged matrices are, but for the order of roundings."""
    names = {f"{module}.weight" for module in SHAPES}
    assert_same(
        {name: array for name, array in actual.items() if name not in names},
        {name: array for name, array in reference.items() if name not in names},
    )
    for name in names:
        eps = float(ml_dtypes.finfo(reference[name].dtype).eps)
        # One rounding to the dtype may go the other way; float32 sums of `rank` products.
        np.testing.assert_allclose(
            np.float64(actual[name]), np.float64(reference[name]), rtol=2 * eps, atol=1e-5
        )


@pytest.mark.capability("checkpoint tools")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("marked", ["", ".default"])
def test_matrices_are_merged(tmp_path, dtype, marked):
    base = tiny(tmp_path / "base", dtype)
    tensors = adapter(tmp_path / "adapter", marked=marked)
    assert run("merge-lora", base, tmp_path / "adapter", tmp_path / "out") == 0
    reference = expected(read(base), tensors, {QUERY: 2.0, DOWN: 2.0}, marked)
    assert_near(read(tmp_path / "out"), reference)
    changed = read(tmp_path / "out")[f"{QUERY}.weight"] != read(base)[f"{QUERY}.weight"]
    assert changed.mean() > 0.9


def test_scales_follow_rank_and_patterns(tmp_path):
    base = tiny(tmp_path / "base")
    tensors = adapter(tmp_path / "adapter", rank=4, use_rslora=True)
    assert run("merge-lora", base, tmp_path / "adapter", tmp_path / "out") == 0
    reference = expected(read(base), tensors, {QUERY: 4.0, DOWN: 4.0})  # 8 / sqrt(4)
    assert_near(read(tmp_path / "out"), reference)
    tensors = adapter(
        tmp_path / "patterns",
        ranks={DOWN: 16},
        rank_pattern={"down_proj": 16},
        alpha_pattern={r"layers\.0\.self_attn\.q_proj": 6, "k_proj": 99, "^q_proj": 98},
    )
    assert run("merge-lora", base, tmp_path / "patterns", tmp_path / "out2") == 0
    reference = expected(read(base), tensors, {QUERY: 1.5, DOWN: 0.5})
    assert_near(read(tmp_path / "out2"), reference)


def test_modules_that_were_trained_whole_are_replaced(tmp_path):
    base = tiny(tmp_path / "base", ml_dtypes.bfloat16)
    head = np.random.default_rng(1).standard_normal((512, 64)).astype(np.float32)
    norm = np.full(64, 2.0, np.float32)
    whole = {
        "base_model.model.lm_head.weight": head,
        "base_model.model.model.norm.modules_to_save.default.weight": norm,
    }
    tensors = adapter(tmp_path / "adapter", whole=whole)
    assert run("merge-lora", base, tmp_path / "adapter", tmp_path / "out") == 0
    reference = expected(read(base), tensors, {QUERY: 2.0, DOWN: 2.0})
    reference["lm_head.weight"] = head.astype(ml_dtypes.bfloat16)
    reference["model.norm.weight"] = norm.astype(ml_dtypes.bfloat16)
    assert_near(read(tmp_path / "out"), reference)


UNSUPPORTED = [
    {"use_dora": True},
    {"bias": "all"},
    {"init_lora_weights": "pissa"},
    {"peft_type": "IA3"},
    {"rank_pattern": {"(a+)+b": 4}},
    {"fan_in_fan_out": True},
    {"whole": {"base_model.model.x.lora_embedding_A": np.zeros((2, 2), np.float32)}},
    {"whole": {"elsewhere.weight": np.zeros((2, 2), np.float32)}},
]
INVALID = [
    {"r": 0},
    {"lora_alpha": None},
    {"r": "4"},
    {"whole": {"base_model.model.nowhere.weight": np.zeros((2, 2), np.float32)}},
    {"whole": {"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}},
    {"whole": {"base_model.model.nowhere.lora_A.weight": np.zeros((2, 2), np.float32)}},
    {"ranks": {QUERY: 3}, "whole": {f"base_model.model.{QUERY}.lora_A.weight": np.zeros((4, 9))}},
]


@pytest.mark.parametrize("fields", UNSUPPORTED)
def test_what_cannot_be_merged_is_refused(tmp_path, capsys, fields):
    adapter(tmp_path / "adapter", **fields)
    base = tiny(tmp_path / "base")
    assert run("merge-lora", base, tmp_path / "adapter", tmp_path / "out") == 2
    assert "RTPJ-3621 ADAPTER_UNSUPPORTED" in capsys.readouterr().err


@pytest.mark.parametrize("fields", INVALID)
def test_what_does_not_fit_is_refused(tmp_path, capsys, fields):
    adapter(tmp_path / "adapter", **fields)
    base = tiny(tmp_path / "base")
    assert run("merge-lora", base, tmp_path / "adapter", tmp_path / "out") == 2
    assert "RTPJ-3620 ADAPTER_INVALID" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
