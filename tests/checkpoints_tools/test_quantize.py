"""Quantizing by plain rounding: bit-equal to the library of the layout, and decoded as it says."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoints_tools.compressed import pack, unpack
from checkpoints_tools.quantize import SCHEMES, round_to, scales_of
from tests.checkpoints_tools.written import assert_same, every_dtype, read, run, save, tiny

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "compressed_tensors.npz")
MATRIX = "model.layers.1.mlp.down_proj"  # 64 rows of 128
NUM_MATRICES = 14  # of two layers
OPTIONS = {"int4": ["--group-size", "32"]}


def quantize(source, out, scheme: str, *more: str) -> int:
    return run("quantize", source, out, "--scheme", scheme, *OPTIONS.get(scheme, []), *more)


def decoded(tensors: dict[str, np.ndarray], module: str, bits: int) -> np.ndarray:
    """Decode a matrix by the words of the layout, one number at a time."""
    scales = tensors[f"{module}.weight_scale"].astype(np.float64)
    if f"{module}.weight_packed" not in tensors:
        return tensors[f"{module}.weight"].astype(np.float64) * scales
    rows, columns = tensors[f"{module}.weight_shape"]
    words = tensors[f"{module}.weight_packed"]
    numbers = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            word = int(words[row, column * bits // 32]) & 0xFFFFFFFF
            value = (word >> (column * bits % 32)) % (1 << bits) - (1 << (bits - 1))
            group = column * scales.shape[1] // columns
            numbers[row, column] = value * scales[row, group]
    return numbers


@pytest.mark.parametrize("name", SCHEMES)
def test_numbers_are_rounded_as_the_library_does(name):
    scheme, weight = SCHEMES[name], GOLDEN["weight"]
    scales = scales_of(weight, scheme, np.dtype(np.float32))
    np.testing.assert_array_equal(scales, GOLDEN[f"{name}.weight_scale"])
    golden = GOLDEN[f"{name}.weight_packed" if scheme.is_packed else f"{name}.weight"]
    values = round_to(weight, scales, scheme)
    np.testing.assert_array_equal(values.view(golden.dtype), golden)


@pytest.mark.capability("checkpoint tools")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_every_matrix_is_near_what_it_was(tmp_path, name, dtype):
    source = tiny(tmp_path / "source", dtype)
    assert quantize(source, tmp_path / "out", name) == 0
    original, found = read(source), read(tmp_path / "out")
    scheme, numbers = SCHEMES[name], original[f"{MATRIX}.weight"].astype(np.float64)
    scales = np.repeat(
        found[f"{MATRIX}.weight_scale"].astype(np.float64),
        128 // found[f"{MATRIX}.weight_scale"].shape[1],
        axis=1,
    )
    # Half a step; the largest number may be cut by half a step more, and a scale in bfloat16 is
    # off by 2^-9 of itself, which the largest value multiplies.
    steps = 2.0**-4 * np.abs(numbers) / scales + 2.0**-9 if scheme.floating else 0.5
    cut = (
        2.0**-8 * (448 if scheme.floating else 2 ** (scheme.bits - 1)) if dtype != np.float32 else 0
    )
    bound = (steps + cut + (0 if scheme.floating else 0.5)) * scales
    assert (np.abs(decoded(found, MATRIX, scheme.bits) - numbers) <= bound).all()
    assert found[f"{MATRIX}.weight_scale"].dtype == dtype
    quantized = {n for n in found if n.endswith(".weight_scale")}
    assert len(quantized) == NUM_MATRICES
    kept = {n: a for n, a in original.items() if "_proj" not in n}
    assert_same({n: found[n] for n in kept}, kept)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_config_says_how(tmp_path, name):
    source = tiny(tmp_path / "source")
    assert quantize(source, tmp_path / "out", name, "--ignore", "*layers.0.mlp.*") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    group = quantization["config_groups"]["group_0"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == SCHEMES[name].format
    assert group["weights"]["num_bits"] == SCHEMES[name].bits
    assert group["weights"]["group_size"] == (32 if name == "int4" else None)
    assert (group["input_activations"] is not None) == name.endswith(("dynamic", "fp8"))
    mlp = [f"model.layers.0.mlp.{part}_proj" for part in ("down", "gate", "up")]
    assert sorted(quantization["ignore"]) == ["lm_head", *mlp]
    found = read(tmp_path / "out")
    assert not [name for name in found if ".0.mlp." in name and name.endswith("_scale")]


@pytest.mark.parametrize(("name", "least"), [("int8", 0.002), ("fp8", 0.01), ("int4", 0.03)])
def test_verify_says_how_far_off_it_is(tmp_path, capsys, name, least):
    source = tiny(tmp_path / "source")
    assert quantize(source, tmp_path / "out", name) == 0
    capsys.readouterr()
    assert run("verify", source, tmp_path / "out", "--json") == 3
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(answer["differences"]) == NUM_MATRICES
    found, original = read(tmp_path / "out"), read(source)[f"{MATRIX}.weight"].astype(np.float64)
    apart = decoded(found, MATRIX, SCHEMES[name].bits) - original
    error = np.sqrt(np.square(apart).sum() / np.square(original).sum())
    (said,) = (d for d in answer["differences"] if d["name"] == f"{MATRIX}.weight")
    assert said["relative_error"] == pytest.approx(error, rel=1e-4)
    assert least < error < 5 * least
    limit = answer["largest_relative_error"] * 1.01
    assert run("verify", source, tmp_path / "out", "--max-error", limit) == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone(bits):
    half = 1 << (bits - 1)
    values = np.random.default_rng(0).integers(-half, half, (5, 13)).astype(np.int8)
    words = pack(values, bits)
    assert words.shape == (5, -(-13 * bits // 32))
    np.testing.assert_array_equal(unpack(words, bits, 13), values)


def test_an_orbax_checkpoint_is_quantized_as_well(tmp_path):
    source = tiny(tmp_path / "source")
    assert run("convert", source, tmp_path / "orbax", "--to", "orbax") == 0
    for name in ("source", "orbax"):
        assert quantize(tmp_path / name, tmp_path / f"{name}-int8", "int8") == 0
    assert_same(read(tmp_path / "orbax-int8"), read(tmp_path / "source-int8"))


def test_routers_and_what_groups_do_not_divide_stay(tmp_path):
    tensors = {
        "model.layers.0.mlp.gate.weight": np.ones((4, 256), np.float32),
        "model.layers.0.mlp.experts.0.up_proj.weight": np.ones((4, 256), np.float32),
        "model.layers.0.odd.weight": np.ones((4, 200), np.float32),
        "model.embed_tokens.weight": np.ones((4, 256), np.float32),
        "lm_head.weight": np.ones((4, 256), np.float32),
    }
    source = save(tmp_path / "source", tensors)
    assert run("quantize", source, tmp_path / "out", "--scheme", "int4") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.odd"]
    assert sorted(config["quantization_config"]["ignore"]) == ignored


def test_what_is_refused(tmp_path, capsys):
    source, out = tiny(tmp_path / "source"), tmp_path / "out"
    assert run("quantize", source, out, "--scheme", "int8", "--group-size", "64") == 2
    assert run("quantize", source, out, "--scheme", "int8", "--ignore", "*") == 2
    assert run("quantize", source, out, "--scheme", "int8") == 0
    assert run("quantize", out, tmp_path / "again", "--scheme", "int8") == 2
    (source / "config.json").unlink()
    assert run("quantize", source, tmp_path / "again", "--scheme", "int8") == 2
    assert capsys.readouterr().err.count("RTPJ-3631 QUANTIZE_INVALID") == 4
    assert run("convert", out, tmp_path / "o", "--to", "safetensors", "--dtype", "bfloat16") == 2
    assert "RTPJ-3614 DTYPE_OF_QUANTIZED" in capsys.readouterr().err


def test_parts_that_do_not_fit_together_are_refused(tmp_path, capsys):
    source = save(tmp_path / "source", every_dtype())
    good = {
        "m.weight_packed": np.zeros((3, 2), np.int32),
        "m.weight_scale": np.ones((3, 1), np.float32),
        "m.weight_shape": np.array([3, 16]),
    }
    wrong = [
        {"m.weight_shape": np.array([3, 100])},
        {"m.weight_shape": np.array([-3, 16])},
        {"m.weight_shape": np.array([3])},
        {"m.weight_scale": np.ones((2, 1), np.float32)},
        {"m.weight_scale": np.ones((3, 5), np.float32)},
        {"m.weight_scale": np.ones(3, np.float32)},
        {"m.weight_packed": np.zeros((3, 2), np.float32)},
    ]
    for number, change in enumerate(wrong):
        folder = save(tmp_path / str(number), {**good, **change})
        assert run("verify", source, folder) == 1
        assert "RTPJ-3617 COMPRESSED_INVALID" in capsys.readouterr().err
    assert run("verify", source, save(tmp_path / "good", good)) == 3
