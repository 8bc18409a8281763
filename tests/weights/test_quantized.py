"""Quantized tensors that contradict each other or the config: refused, with tensor and file."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.quant.schemes import SCHEMES
from rtp_jax.runner.encoders import encoders
from rtp_jax.weights.loader import load
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.quantized import in_parts
from rtp_jax.weights.table import Weight, as_is
from tests.golden.quantized_layouts import CASES, save, tensors_of

MODULE = "model.layers.1.mlp.up_proj"


def broken(folder: Path, case: str, part: str, change) -> CheckpointError:
    """Load a case whose one tensor was changed, or taken away, and return how it is refused."""
    tensors, _ = tensors_of(CASES[case])
    name = f"{MODULE}.{part}"
    changed = change(tensors.pop(name).copy() if name in tensors else None)
    if changed is not None:
        tensors[name] = np.ascontiguousarray(changed)
    save(folder, tensors, CASES[case].config)
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    bones = skeleton(spec, Target("cpu", jnp.dtype("float32")))
    table = architecture(spec.architecture).weight_table(spec)
    with pytest.raises(CheckpointError) as refused:
        load(folder, table, bones.stored, encoders=encoders(bones))
    assert name in str(refused.value)
    return refused.value


def put(at, value):
    """Change one number of a tensor."""

    def change(tensor):
        tensor[at] = value
        return tensor

    return change


def nothing(tensor):
    return None


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("gptq_zeros_ordered_32", "g_idx"),
        ("gptq_128", "qzeros"),
        ("gptq_128", "scales"),
        ("awq_128", "qweight"),
        ("packed_zeros_128", "weight_zero_point"),
        ("packed_zeros_ordered_64", "weight_g_idx"),
        ("int8_row_dynamic", "weight_scale"),
        ("float8_blocks_deepseek", "weight_scale_inv"),
    ],
)
def test_a_part_that_is_missing(case, part, tmp_path):
    assert broken(tmp_path, case, part, nothing).id == "RTPJ-3001"


@pytest.mark.parametrize(
    ("case", "part", "change", "words"),
    [
        ("gptq_128", "qweight", lambda t: t[:-1], r"is \[31, 384\], .* is \[32, 384\]"),
        ("gptq_128", "qweight", lambda t: t.astype(np.float32), "is float32, .* is int32"),
        ("awq_128", "scales", lambda t: t.T, r"is \[384, 2\], .* is \[2, 384\]"),
        ("packed_128", "weight_packed", lambda t: t[:, :4], r"is \[384, 4\]"),
        ("int8_row", "weight", lambda t: t.astype(np.float32), "is float32, .* is int8"),
        ("int8_row", "weight_scale", lambda t: t[:7], r"is \[7, 1\], flattened \[7\], .*\[384\]"),
        ("float8_blocks", "weight_scale", lambda t: t[:1], r"is \[1, 2\], .* is \[3, 2\]"),
    ],
)
def test_a_part_of_another_shape_or_dtype(case, part, change, words, tmp_path):
    refused = broken(tmp_path, case, part, change)
    assert refused.id == "RTPJ-3101"
    with pytest.raises(CheckpointError, match=words):
        raise refused


@pytest.mark.parametrize(
    ("case", "part", "change", "words"),
    [
        ("gptq_128", "qzeros", put((0, 0), 0x77777767), "zero points other than 8"),
        ("gptq_v2_ordered_128", "qzeros", put((0, 0), 0x77777777), "zero points other than 8"),
        ("gptq_128", "g_idx", lambda t: t[::-1], "it orders columns, and config.json says"),
        ("gptq_ordered_128", "g_idx", put(3, 7), "it does not put 128 columns into each of 2"),
        ("gptq_ordered_128", "g_idx", put(slice(None), 0), "it does not put 128 columns"),
        ("gptq_128", "bias", put(5, 1), "it is not zero, and the model has no bias there"),
        ("float8_row", "weight", put((3, 5), np.nan), "values that are not a number"),
        ("packed_128", "weight_shape", put(0, 256), r"it says \[256, 256\] and the matrix is"),
    ],
)
def test_a_part_that_contradicts(case, part, change, words, tmp_path):
    refused = broken(tmp_path, case, part, change)
    assert refused.id == "RTPJ-3103"
    assert f"{tmp_path / 'model.safetensors'}, tensor {MODULE}.{part}: " in str(refused)
    with pytest.raises(CheckpointError, match=words):
        raise refused


def test_a_tensor_with_a_row_of_its_own_is_no_part():
    rows = [Weight("a.weight", "a.kernel"), Weight("a.bias", "a.bias"), Weight("b.weight", "b")]
    kind = MatrixFormat("gptq", SCHEMES["int4"])
    expanded = in_parts(rows, lambda row: kind if row.source == "a.weight" else None)
    assert [(row.source, row.target) for row in expanded] == [
        ("a.qweight", "a.kernel.qweight"),
        ("a.qzeros", "a.kernel.qzeros"),
        ("a.scales", "a.kernel.scales"),
        ("a.g_idx", "a.kernel.g_idx"),
        ("a.bias", "a.bias"),
        ("b.weight", "b"),
    ]
    assert [row.source for row in expanded if row.is_optional] == ["a.g_idx"]
    assert all(row.transform is as_is for row in expanded)
