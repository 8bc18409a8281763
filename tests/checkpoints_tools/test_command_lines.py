"""The command lines that others script against: their words, their answers, their exit codes.

Each runs as a script would run it, in a process of its own, or as the installed command would.
"""

import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from checkpoints_tools.main import main
from tests.checkpoints_tools.written import assert_same, every_dtype, read, run, save, tiny

ROOT = Path(__file__).parents[2]


def script(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line in a process."""
    command = [sys.executable, "-m", "checkpoints_tools", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def answer(capsys) -> dict:
    """Read the last line of stdout, as a script would."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["rtp-jax-ckpt"]) is main


def test_a_process_ends_with_each_of_the_codes(tmp_path):
    good, other = save(tmp_path / "a", every_dtype(0)), save(tmp_path / "b", every_dtype(1))
    ends = {
        0: ("verify", good, good),
        1: ("inspect", tmp_path / "nothing"),
        2: ("convert", good, tmp_path / "c"),
        3: ("verify", good, other),
    }
    for code, arguments in ends.items():
        done = script(*arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.capability("checkpoint tools")
def test_convert_there_and_back(tmp_path, capsys):
    tensors = every_dtype()
    source = save(tmp_path / "source", tensors, num_files=2)
    assert run("convert", source, tmp_path / "orbax", "--to", "orbax", "--json") == 0
    assert answer(capsys)["event"] == "done"
    back = tmp_path / "back"
    assert run("convert", tmp_path / "orbax", back, "--to", "safetensors") == 0
    assert_same(read(back), tensors)
    assert run("verify", source, back) == 0
    assert run("convert", source, back, "--to", "safetensors") == 2  # it is there
    assert run("convert", tmp_path / "nothing", tmp_path / "c", "--to", "orbax") == 1
    half = {name: array for name, array in tensors.items() if "fp8" not in name}
    source = save(tmp_path / "half", half)
    out = tmp_path / "rounded"
    assert run("convert", source, out, "--to", "orbax", "--dtype", "bfloat16") == 0
    assert run("verify", source, out) == 3
    assert run("verify", source, out, "--max-error", "0.01") == 0


def test_inspect_as_words_and_as_json(tmp_path, capsys):
    source = tiny(tmp_path / "source")
    assert run("inspect", source) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    assert run("inspect", source, "--json") == 0
    found = answer(capsys)
    assert found["stored_numbers"] == sum(array.size for array in read(source).values())
    (source / "model.safetensors").write_bytes(b"\x80\x04")
    assert run("inspect", source, "--json") == 1
    assert answer(capsys)["id"] == "RTPJ-3020"


def test_quantize_and_what_it_cost(tmp_path, capsys):
    source = tiny(tmp_path / "source")
    for scheme in ("int8", "int8_dynamic", "int4", "fp8"):
        out = tmp_path / scheme
        options = ["--group-size", "32"] if scheme == "int4" else []
        assert run("quantize", source, out, "--scheme", scheme, *options) == 0
        assert run("verify", out) == 0
        assert run("verify", source, out) == 3
        assert run("quantize", source, out, "--scheme", scheme, *options) == 2
    with pytest.raises(SystemExit, match="2"):
        run("quantize", source, tmp_path / "o", "--scheme", "int3")
    flipped = bytearray((tmp_path / "int8" / "model.safetensors").read_bytes())
    flipped[-1] ^= 1
    (tmp_path / "int8" / "model.safetensors").write_bytes(flipped)
    capsys.readouterr()
    assert run("verify", tmp_path / "int8", "--json") == 3
    assert answer(capsys)["id"] == "RTPJ-3609"
