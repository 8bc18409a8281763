"""`quantize --scheme gptq|awq` from end to end: what it writes runs, is good, can be resumed."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints_tools.calibration import gptq
from checkpoints_tools.calibration.kept_layers import LayerFile
from checkpoints_tools.compressed import decoded_tensors
from checkpoints_tools.main import main
from checkpoints_tools.source import open_source
from rtp_jax.layers.target import Target
from tests.checkpoints_tools.killed import killed_and_resumed
from tests.checkpoints_tools.written import assert_same, read, run, save, tree
from tests.models.test_quantized_checkpoints import MODULES, loaded, numbers_of
from tests.tiny_model import CONFIG, TEXT, write_tiny_model

ROOT = Path(__file__).parents[3]
SCHEMES = {
    "gptq": ["--scheme", "gptq", "--group-size", "32"],
    "order": ["--scheme", "gptq", "--group-size", "64", "--act-order"],
    "awq": ["--scheme", "awq", "--group-size", "32"],
}
NUM_MATRICES = 14  # of two layers
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def quantized(model, text, tmp_path_factory) -> Callable[[str], Path]:
    """Quantize the model by a scheme, once for all tests that only look at the result."""
    folder = tmp_path_factory.mktemp("quantized")

    @functools.cache
    def made(name: str) -> Path:
        assert quantize(model, folder / name, text, name) == 0
        return folder / name

    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "calibration.txt"
    path.write_text("\n".join(f"{number} {TEXT}" for number in range(6)))
    return path


def quantize(source: object, out: Path, text: Path, name: str, *more: str) -> int:
    return run("quantize", source, out, *SCHEMES[name], "--calibration", text, *more)


def write_tokenizer_again(folder: Path, source: Path) -> None:
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


@pytest.mark.capability("calibration")
@pytest.mark.parametrize("name", SCHEMES)
def test_the_engine_reads_the_numbers_that_were_meant(name, quantized):
    out = quantized(name)
    bones, arrays = loaded(out, Target("cpu", np.dtype(np.float32)))
    decoded = decoded_tensors(open_source(str(out)))
    assert len(decoded) == NUM_MATRICES
    for path, module in MODULES.items():
        for layer in range(2):
            meant = np.concatenate([*decoded[f"model.layers.{layer}.{module}.weight"].blocks()])
            np.testing.assert_array_equal(numbers_of(bones, arrays, path, layer), meant)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert config["format"] == "pack-quantized"
    assert weights["symmetric"] == (name != "awq")
    assert weights.get("actorder") == ("weight" if name == "order" else None)
    assert config["ignore"] == ["lm_head"]
    assert run("verify", out) == 0


def test_factors_of_awq_are_in_the_norms_and_nowhere_else(model, quantized):
    before, after = read(model), read(quantized("awq"))
    kept = {name for name in before if name.removesuffix(".weight").split(".")[-1] not in MATRICES}
    changed = {name for name in kept if before[name].tobytes() != after[name].tobytes()}
    assert changed == {name for name in kept if "layernorm" in name}
    after = read(quantized("gptq"))
    assert not [name for name in kept if before[name].tobytes() != after[name].tobytes()]


def test_what_is_ignored_is_kept(model, text, tmp_path):
    for name in ("gptq", "awq"):
        out = tmp_path / name
        more = ["--ignore", "*layers.0.*", "--ignore", "*up_proj*", "--ignore", "*v_proj*"]
        assert quantize(model, out, text, name, *more) == 0
        before, after = read(model), read(out)
        for part in (f"self_attn.{p}" for p in ("q_proj", "v_proj", "o_proj")):
            weight = f"model.layers.0.{part}.weight"
            assert before[weight].tobytes() == after[weight].tobytes()
        norms = [n for n in before if "norm" in n]
        assert all(before[n].tobytes() == after[n].tobytes() for n in norms)
        assert sum(each.endswith(".weight_packed") for each in after) == 5


def test_progress_is_told_layer_by_layer(model, text, tmp_path, capsys):
    assert quantize(model, tmp_path / "out", text, "gptq", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    layers = [event for event in events if event["event"] == "layer"]
    assert [(e["layer"], e["layers"], e["matrices_done"]) for e in layers] == [
        (1, 2, 7),
        (2, 2, 14),
    ]
    assert all(0.01 < event["error"] < 0.2 for event in layers)
    (calibration,) = (event for event in events if event["event"] == "calibration")
    assert calibration["tokens"] > 500
    assert calibration["wanted"] == 32768


def test_a_dry_run_computes_and_writes_nothing(
    model, text, quantized, tmp_path, capsys, monkeypatch
):
    def refuse(*_):
        raise AssertionError("it computes")

    monkeypatch.setattr(gptq, "solve", refuse)
    assert quantize(model, tmp_path / "out", text, "gptq", "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*tmp_path.iterdir()] == []
    monkeypatch.undo()
    made = quantized("gptq")
    sizes = {name: (made / name).stat().st_size for name in planned["files"]}
    assert sizes == planned["files"]


class Interrupted(BaseException):
    """The end of the process, as far as the job can see."""


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_an_end_within_any_layer_is_taken_up(name, model, text, quantized, tmp_path, monkeypatch):
    whole = quantized(name)
    out, write, solved = tmp_path / "out", LayerFile.write, []

    def torn(self, folder, encoded, numbers):
        if self.number == stop:
            (folder / self.name).write_bytes(b"torn")
            raise Interrupted
        solved.append(self.number)
        return write(self, folder, encoded, numbers)

    monkeypatch.setattr(LayerFile, "write", torn)
    for stop in (0, 1):
        with pytest.raises(Interrupted):
            quantize(model, out, text, name, *["--resume"][:stop])
        assert not out.exists()
    assert quantize(model, out, text, name) == 2  # without --resume
    stop = None
    (tmp_path / "out.partial" / ".layer-00001").write_bytes(b"torn")
    assert quantize(model, out, text, name, "--resume") == 0
    assert solved == [0, 1]  # each was done once
    assert tree(out) == tree(whole)
    assert [*tmp_path.iterdir()] == [out]


def test_another_text_is_not_mixed_in(model, text, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(LayerFile, "write", stop)
        with pytest.raises(Interrupted):
            quantize(model, tmp_path / "out", text, "gptq")
    (tmp_path / "other.txt").write_text(TEXT)
    assert quantize(model, tmp_path / "out", tmp_path / "other.txt", "gptq", "--resume") == 2
    assert quantize(model, tmp_path / "out", text, "order", "--resume") == 2
    more = ["--calibration-tokens", "100", "--resume"]
    assert quantize(model, tmp_path / "out", text, "gptq", *more) == 2
    assert capsys.readouterr().err.count("RTPJ-3603 RESUME_MISMATCH") == 3


def test_killed_between_layers_and_resumed(model, text, quantized, tmp_path):
    command = [sys.executable, "-m", "checkpoints_tools", "quantize", str(model)]
    command += [str(tmp_path / "out"), *SCHEMES["gptq"], "--calibration", str(text), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "layer":
                os.kill(process.pid, signal.SIGKILL)
                break
    assert not (tmp_path / "out").exists()
    assert quantize(model, tmp_path / "out", text, "gptq", "--resume") == 0
    assert tree(tmp_path / "out") == tree(quantized("gptq"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_killed_at_random_moments_and_resumed(name, model, text, tmp_path):
    options = [*SCHEMES[name], "--calibration", text]
    moments = killed_and_resumed(
        lambda out: ["quantize", model, out, *options], tmp_path, kills=5, seed=5
    )
    assert min(moments) < 0.5 < max(moments)


def test_what_is_refused(model, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("quantize", model, out, "--scheme", "gptq") == 2
    assert run("quantize", model, out, "--scheme", "int4", "--calibration", text) == 2
    assert run("quantize", model, out, "--scheme", "int4", "--calibration-tokens", "500") == 2
    assert quantize(model, out, text, "gptq", "--calibration-tokens", "63") == 2
    assert quantize(model, out, text, "awq", "--act-order") == 2
    assert capsys.readouterr().err.count("RTPJ-3632 QUANTIZE_OPTIONS_INVALID") == 5
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert quantize(model, out, empty, "awq") == 2
    assert "RTPJ-3633 CALIBRATION_FILE_INVALID" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [empty]


def test_a_model_whose_layers_are_not_there_is_refused_by_name(text, tmp_path, capsys):
    expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    source = save(tmp_path / "source", {expert: np.ones((32, 64), np.float32)})
    (source / "config.json").write_text('{"architectures": ["MixtralForCausalLM"]}')
    assert quantize(source, tmp_path / "out", text, "gptq") == 2
    error = capsys.readouterr().err
    assert "RTPJ-3630 CALIBRATION_UNSUPPORTED" in error
    assert "MixtralForCausalLM" in error


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(text, tmp_path, capsys):
    source = write_tiny_model(tmp_path / "source")
    tensors = read(source)
    for wrong in ({"intermediate_size": 192}, {"vocab_size": 600}):
        (source / "config.json").write_text(json.dumps({**CONFIG, **wrong}))
        assert quantize(source, tmp_path / "out", text, "gptq") == 2
        assert "RTPJ-3631 QUANTIZE_INVALID" in capsys.readouterr().err
    del tensors["model.layers.1.mlp.up_proj.weight"]
    lacking = save(tmp_path / "lacking", tensors)
    (lacking / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer_again(lacking, source)
    assert quantize(lacking, tmp_path / "out", text, "gptq") == 1
    assert "RTPJ-3001 TENSORS_DO_NOT_MATCH" in capsys.readouterr().err


def test_numbers_that_are_none_are_noticed(text, tmp_path, capsys):
    source = write_tiny_model(tmp_path / "source")
    config, tensors = (source / "config.json").read_text(), read(source)
    other = write_tiny_model(tmp_path / "other")
    name = "model.layers.0.mlp.up_proj.weight"
    gate = name.replace("up_proj", "gate_proj")
    # Products of 1e10 and 1e11 are finite, and their squares are not.
    for number, other_number, said in (
        (np.inf, 1.0, f"tensor {name} has"),
        (1e20, 1.0, f"tensor {name} has"),
        (1e10, 1e11, "layer 0, given this text, has"),
    ):
        broken = {each: tensors[each].copy() for each in (name, gate)}
        broken[name][3:5] = number
        broken[gate][3:5] = other_number
        save(source, {**tensors, **broken})
        (source / "config.json").write_text(config)
        write_tokenizer_again(source, other)
        assert quantize(source, tmp_path / "out", text, "awq", "--overwrite") == 1
        error = capsys.readouterr().err
        assert "RTPJ-3634 CALIBRATION_NOT_FINITE" in error
        assert said in error


def test_the_source_may_be_orbax(model, text, quantized, tmp_path):
    assert main(["convert", str(model), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    assert quantize(tmp_path / "orbax", tmp_path / "a", text, "awq") == 0
    assert_same(read(tmp_path / "a"), read(quantized("awq")))
