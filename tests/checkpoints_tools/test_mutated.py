"""Mutated checkpoints: whatever bytes change, there is a typed error or an output, and no more."""

import json
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from checkpoints_tools import manifest
from checkpoints_tools.source import open_source
from tests.checkpoints_tools.written import every_dtype, run, save
from tests.weights.test_mutations import damaged, renumbered

QUICK, FULL = 50, 667  # of each kind
ELSEWHERE = Path("/tmp/rtp-jax-mutated-evil")  # where one of the names leads
NAMES = [
    "../evil",
    str(ELSEWHERE),
    "a/../../evil",
    "..",
    ".",
    "",
    "a\x00b",
    "x" * 2000,
    "con\n",
    "d",
]
PICKLES = [b"\x80\x04\x95\x10", b"PK\x03\x04", b"\x80\x02}q\x00", b"GGUF\x03"]
COMMANDS = [("convert", "--to", to) for to in ("orbax", "safetensors")] * 2
COMMANDS += [("quantize", "--scheme", "int8"), ("inspect",), ("verify",)]
MAX_GROWTH_KB = 512 << 10
pytestmark = pytest.mark.filterwarnings("ignore:.*OCDBT.*")


def originals(folder: Path) -> dict[str, Path]:
    """Write one valid checkpoint of each kind; they have a matrix that can be quantized."""
    tensors = every_dtype() | {"model.layers.0.up.weight": np.ones((4, 128), np.float32)}
    plain = save(folder / "files", tensors, num_files=2)
    assert run("convert", plain, folder / "orbax", "--to", "orbax") == 0
    assert run("convert", plain, folder / "promised", "--to", "safetensors") == 0
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder / "store", args=ocp.args.PyTreeSave(tensors))
    return {name: folder / name for name in ("files", "orbax", "promised", "store")}


def renamed(data: bytes, chance: random.Random) -> bytes:
    """Give something in a JSON text or a header another name."""
    known = [b"model.f32.weight", b"model.bf16.weight", b"part-0.safetensors", b"config.json"]
    name = json.dumps(chance.choice(NAMES))[1:-1].encode()
    changed = data.replace(chance.choice(known), name)
    if changed != data and data[8:9] == b"{":  # the length of the header
        grown = len(changed) - len(data)
        changed = (int.from_bytes(data[:8], "little") + grown).to_bytes(8, "little") + changed[8:]
    return changed


def without_metadata(data: bytes) -> bytes:
    """Drop what a header says about the whole file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutate(folder: Path, chance: random.Random, outside: Path) -> None:
    """Change one file of a checkpoint, or put something else in its place."""
    file = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = file.read_bytes()
    match chance.randrange(8):
        case 0 | 1:
            file.write_bytes(damaged(data, chance, limit=3000) if data else b"x")
        case 2 if file.suffix == ".safetensors":
            file.write_bytes(renumbered(without_metadata(data), chance))
        case 3:
            file.write_bytes(renamed(data, chance))
        case 4:
            file.unlink()
            file.symlink_to(chance.choice([outside / "secret", outside, Path("loop"), file]))
        case 5:
            file.write_bytes(chance.choice(PICKLES) * 5)
        case 6:
            file.write_bytes(data + bytes(chance.randrange(1, 5000)))
        case _:
            chance.choice([file.unlink, lambda: file.write_bytes(b"")])()


def snapshot(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of every file below a folder; of folders and dead links that they are there."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat() if path.is_file() else None
        found[str(path.relative_to(folder))] = status and (status.st_size, status.st_mtime_ns)
    return found


def attempt(folder: Path, out: Path, chance: random.Random) -> int:
    """Have a command read a mutated checkpoint, and look at what it leaves behind.

    An output is complete and promised, or there is none; and there is nothing beside it.
    """
    before, command = snapshot(out.parent), chance.choice(COMMANDS)
    writes = command[0] in ("convert", "quantize")
    code = run(command[0], folder, *[out][:writes], *command[1:])
    assert code in (0, 1, 2, 3)
    after = snapshot(out.parent)
    mine = {name for name in after if name.split("/")[0] in (out.name, f"{out.name}.partial")}
    assert {name: after[name] for name in after.keys() - mine} == before
    assert not ELSEWHERE.exists()
    assert out.exists() == (writes and code == 0)
    if code == 0 and command[0] == "convert":
        source, result = open_source(str(folder)), open_source(str(out))
        assert source.by_name().keys() == result.by_name().keys()
        assert run("verify", out) == 0
    for left in (out, Path(f"{out}.partial")):
        shutil.rmtree(left, ignore_errors=True)
    return code


def attempts(tmp_path: Path, monkeypatch, capsys, *, seed: int, rounds: int) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # nothing here is to outlive the machine
    (tmp_path / "secret").write_text("not for others")
    whole, chance, codes = originals(tmp_path / "whole"), random.Random(seed), []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(rounds):
        folder = tmp_path / "mutated"
        shutil.copytree(chance.choice(list(whole.values())), folder, symlinks=True)
        mutate(folder, chance, tmp_path)
        codes.append(attempt(folder, tmp_path / "out", chance))
        said = capsys.readouterr()
        assert codes[-1] == 0 or "rtp-jax-ckpt: RTPJ-3" in said.err, number
        assert "Traceback" not in said.err
        shutil.rmtree(folder)
    assert {0, 1, 2} <= set(codes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MAX_GROWTH_KB


@pytest.mark.parametrize("seed", range(3))
def test_mutated_checkpoints(tmp_path, monkeypatch, capsys, seed):
    attempts(tmp_path, monkeypatch, capsys, seed=seed, rounds=QUICK)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10, 13))
def test_many_mutated_checkpoints(tmp_path, monkeypatch, capsys, seed):
    attempts(tmp_path, monkeypatch, capsys, seed=seed, rounds=FULL)


def test_a_manifest_leads_nowhere(tmp_path, capsys):
    source = save(tmp_path / "source", {"a": np.zeros(3, np.float32)})
    assert run("convert", source, tmp_path / "out", "--to", "safetensors") == 0
    path = tmp_path / "out" / manifest.NAME
    path.write_text(path.read_text().replace("tokenizer.json", "../source/tokenizer.json"))
    assert run("verify", tmp_path / "out") == 2
    assert "RTPJ-3616 NOTHING_TO_COMPARE" in capsys.readouterr().err


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path, capsys):
    size = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    folder = tmp_path / "sparse"
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert run("inspect", folder) == 0
    assert run("convert", folder, tmp_path / "out", "--to", "orbax") == 2
    assert "RTPJ-3604 DISK_TOO_SMALL" in capsys.readouterr().err
