"""Conversion: every byte arrives, nothing is overwritten, and refusals come before any writing."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_tools import manifest, target
from checkpoints_tools.source import in_rows, open_source, regroup
from tests.checkpoints_tools.written import assert_same, every_dtype, read, run, save, tree


@pytest.mark.capability("checkpoint tools")
@pytest.mark.parametrize("num_files", [1, 3])
def test_there_and_back_is_byte_identical(tmp_path, num_files):
    tensors = every_dtype()
    source = save(tmp_path / "source", tensors, num_files)
    assert run("convert", source, tmp_path / "orbax", "--to", "orbax") == 0
    assert run("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors") == 0
    assert_same(read(tmp_path / "back"), tensors)
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        for folder in ("orbax", "back"):
            assert (tmp_path / folder / name).read_bytes() == (source / name).read_bytes()
    assert run("verify", source, tmp_path / "back") == 0
    assert run("verify", tmp_path / "orbax") == run("verify", tmp_path / "back") == 0


def test_files_are_dealt_out_by_size(tmp_path):
    tensors = {f"t{i}": np.full(600, i, np.uint8) for i in range(5)} | {
        "large": np.zeros(3000, np.uint8)
    }
    source = save(tmp_path / "source", tensors)
    out = tmp_path / "out"
    assert run("convert", source, out, "--to", "safetensors", "--max-file-size", "2KB") == 0
    files = sorted(path.name for path in out.glob("model-*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) == 3  # the large one alone, three small ones, two small ones
    assert_same(read(out), tensors)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6000
    for file in files:  # numbers of any width are aligned
        assert int.from_bytes((out / file).read_bytes()[:8], "little") % 64 == 56


@pytest.mark.parametrize("to", ["safetensors", "orbax"])
def test_floats_are_rounded_and_the_rest_is_kept(tmp_path, to):
    tensors = every_dtype()
    source = save(tmp_path / "source", {n: t for n, t in tensors.items() if "fp8" not in n})
    out = tmp_path / "out"
    assert run("convert", source, out, "--to", to, "--dtype", "bfloat16") == 0
    if to == "orbax":
        assert run("convert", out, tmp_path / "back", "--to", "safetensors") == 0
        out = tmp_path / "back"
    floats = (np.float32, np.float16)
    expected = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype in floats else array
        for name, array in tensors.items()
        if "fp8" not in name
    }
    assert_same(read(out), expected)
    config = json.loads((out / "config.json").read_text())
    assert config == {"architectures": ["X"], "torch_dtype": "bfloat16"}


def test_the_manifest_is_true_and_nothing_in_it_is_by_chance(tmp_path):
    source = save(tmp_path / "source", every_dtype())
    for name in ("one", "two"):
        assert run("convert", source, tmp_path / name, "--to", "orbax") == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    found = json.loads((tmp_path / "one" / manifest.NAME).read_text())
    hashes = tree(tmp_path / "one")
    del hashes[manifest.NAME]
    assert {name: entry["sha256"] for name, entry in found["files"].items()} == hashes
    for name, array in every_dtype().items():
        entry = found["tensors"][name]
        assert entry["sha256"] == hashes[entry["file"]]
        assert entry["shape"] == list(array.shape)


def test_bytes_that_changed_since_are_found(tmp_path, capsys):
    assert run("convert", save(tmp_path / "a", every_dtype()), tmp_path / "b", "--to", "orbax") == 0
    chunk = tmp_path / "b" / "model.f16.weight" / "0.0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)
    assert run("verify", tmp_path / "b") == 3
    assert run("convert", tmp_path / "b", tmp_path / "c", "--to", "safetensors") == 3
    assert "RTPJ-3609 HASH_MISMATCH" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    source = save(tmp_path / "source", every_dtype())
    before = tree(tmp_path)
    arguments = ["convert", source, tmp_path / "out", "--to", "safetensors", "--dry-run", "--json"]
    assert run(*arguments) == 0
    assert tree(tmp_path) == before
    planned = json.loads(capsys.readouterr().out)
    assert run(*[a for a in arguments if a != "--dry-run"]) == 0
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    del sizes[manifest.NAME]
    assert planned["files"] == sizes


def test_progress_is_lines_of_json(tmp_path, capsys):
    source = save(tmp_path / "source", {"a": np.zeros((3 << 20,), np.float32)})
    assert run("convert", source, tmp_path / "out", "--to", "orbax", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [line["bytes_done"] for line in lines if line["event"] == "progress"]
    assert done == sorted(done)
    assert lines[-1]["event"] == "done"
    assert run("convert", source, tmp_path / "out", "--to", "orbax", "--json") == 2
    assert json.loads(capsys.readouterr().out)["id"] == "RTPJ-3601"


def test_nothing_is_overwritten_without_being_told(tmp_path, capsys):
    first, second = save(tmp_path / "1", every_dtype(1)), save(tmp_path / "2", every_dtype(2))
    out = tmp_path / "out"
    assert run("convert", first, out, "--to", "safetensors") == 0
    assert run("convert", second, out, "--to", "safetensors") == 2
    assert "RTPJ-3601 OUTPUT_EXISTS" in capsys.readouterr().err
    assert_same(read(out), every_dtype(1))
    assert run("convert", second, out, "--to", "orbax", "--overwrite") == 0
    assert not list(out.glob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "out"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert run("convert", first, mine, "--to", "orbax", "--overwrite") == 2
    assert (mine / "thesis.txt").exists()
    mine.rename(tmp_path / "out.replaced")
    assert run("convert", first, out, "--to", "orbax", "--overwrite") == 2
    assert (tmp_path / "out.replaced" / "thesis.txt").exists()


def test_outputs_that_can_never_be(tmp_path, capsys):
    source = save(tmp_path / "source", every_dtype())
    for out in (source, source / "within", tmp_path, tmp_path / "no" / "such" / "folder"):
        assert run("convert", source, out, "--to", "orbax") == 2
        assert "RTPJ-3611 OUTPUT_INVALID" in capsys.readouterr().err
    for size in ("0GB", "many", "12TB", "1.5GB"):
        assert run("convert", source, tmp_path / "o", "--to", "orbax", "--max-file-size", size) == 2
    assert "RTPJ-3613 SIZE_INVALID" in capsys.readouterr().err


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "source", every_dtype())
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run("convert", source, tmp_path / "out", "--to", "orbax") == 2
    assert "RTPJ-3604 DISK_TOO_SMALL" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_disk_that_fails_while_writing_is_an_error_with_a_way_out(tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "source", every_dtype())

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert run("convert", source, tmp_path / "out", "--to", "safetensors") == 1
    assert "RTPJ-3605 OUTPUT_UNWRITABLE" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "out", "--to", "safetensors", "--resume") == 0
    assert_same(read(tmp_path / "out"), every_dtype())


def test_two_at_once_are_refused(tmp_path, capsys):
    source = save(tmp_path / "source", every_dtype())
    held = target.Target(path=tmp_path / "out")
    with held.opened("somebody else's"):
        assert run("convert", source, tmp_path / "out", "--to", "orbax", "--resume") == 2
    assert "RTPJ-3606 OUTPUT_BUSY" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a/b", "..", "d", "", "_METADATA"])
def test_names_that_are_no_folders_are_refused_for_orbax(tmp_path, capsys, name):
    source = save(tmp_path / "source", {name: np.zeros(3, np.float32)})
    assert run("convert", source, tmp_path / "out", "--to", "orbax") == 2
    error = capsys.readouterr().err
    assert "RTPJ-3607 TENSOR_NOT_FOR_ORBAX" in error
    assert "cannot be that of a folder" in error
    assert run("convert", source, tmp_path / "out", "--to", "safetensors") == 0


def test_empty_tensors_stay_in_safetensors(tmp_path, capsys):
    source = save(tmp_path / "source", {"a": np.zeros((0, 3), np.float32)})
    assert run("convert", source, tmp_path / "out", "--to", "orbax") == 2
    assert "no empty arrays" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "out", "--to", "safetensors") == 0
    assert read(tmp_path / "out")["a"].shape == (0, 3)


def test_quantized_checkpoints_keep_their_dtype(tmp_path, capsys):
    source = save(tmp_path / "source", {"a": np.zeros(3, ml_dtypes.float8_e4m3fn)})
    arguments = ["convert", source, tmp_path / "out", "--to", "safetensors"]
    assert run(*arguments, "--dtype", "bfloat16") == 2
    assert "RTPJ-3614 DTYPE_OF_QUANTIZED" in capsys.readouterr().err
    assert run(*arguments) == 0


def test_numbers_that_become_infinite_are_refused(tmp_path, capsys):
    source = save(tmp_path / "source", {"a": np.array([1.0, 1e6, np.inf], np.float32)})
    assert run("convert", source, tmp_path / "o", "--to", "safetensors", "--dtype", "float16") == 1
    assert "RTPJ-3102 NUMBER_TOO_LARGE" in capsys.readouterr().err


def test_pickles_are_refused_by_name_and_by_what_they_are(tmp_path, capsys):
    folder = tmp_path / "pickles"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (folder / "config.json").write_text("{}")
    assert run("convert", folder, tmp_path / "out", "--to", "orbax") == 2
    error = capsys.readouterr().err
    assert "RTPJ-3033 FORMAT_UNSUPPORTED" in error
    assert "safetensors" in error
    for content in (b"\x80\x04\x95", b"PK\x03\x04zip"):
        (folder / "model.safetensors").write_bytes(content * 9)
        assert run("convert", folder, tmp_path / "out", "--to", "orbax") == 1
        assert "RTPJ-3020 SAFETENSORS_INVALID" in capsys.readouterr().err
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(b"\x80\x04\x95")
    assert run("convert", folder, tmp_path / "out", "--to", "orbax") == 1
    assert "RTPJ-3610 COMPANION_REFUSED" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert run("convert", folder, tmp_path / "out", "--to", "orbax") == 0
    assert "not copied: pytorch_model.bin" in capsys.readouterr().err
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_links_out_of_the_folder_are_not_followed(tmp_path, capsys):
    (tmp_path / "secret.json").write_text("mine")
    source = save(tmp_path / "source", every_dtype())
    (source / "special_tokens_map.json").symlink_to(tmp_path / "secret.json")
    assert run("convert", source, tmp_path / "out", "--to", "orbax") == 1
    assert "RTPJ-3014 FILE_OUTSIDE" in capsys.readouterr().err


def test_wrong_calls_end_with_two(tmp_path, capsys):
    for arguments in (["convert"], ["convert", "a", "b"], ["melt"], ["quantize", "a", "b"]):
        with pytest.raises(SystemExit, match="2"):
            run(*arguments)
    assert run("convert", tmp_path / "nothing", tmp_path / "out", "--to", "orbax") == 1
    assert "RTPJ-3031 MODEL_NOT_FOUND" in capsys.readouterr().err


def test_a_manifest_that_is_none_is_refused(tmp_path, capsys):
    source = save(tmp_path / "source", every_dtype())
    for text in ('{"format": "other"}', '{"format": "rtp-jax-ckpt manifest 1", "tensors": 1}'):
        (source / manifest.NAME).write_text(text)
        assert run("inspect", source) == 1
        assert "RTPJ-3612 MANIFEST_INVALID" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_pieces_are_regrouped_without_loss(size):
    data = np.arange(50, dtype=np.uint8)
    pieces = np.split(data, [0, 1, 1, 9, 30, 49])
    groups = [*regroup(pieces, size)]
    assert all(group.size == size for group in groups[:-1])
    np.testing.assert_array_equal(np.concatenate(groups), data)
    rows = [*in_rows(pieces, np.dtype(np.uint8), 5, block_bytes=size)]
    np.testing.assert_array_equal(np.concatenate(rows), data.reshape(-1, 5))


def test_memory_does_not_grow_with_a_tensor(tmp_path):
    """A piece is at most a block, whatever the tensor."""
    source = save(tmp_path / "source", {"a": np.zeros((10 << 20,), np.float32)})
    opened = open_source(str(source))
    sizes = [piece.size for piece in opened.read(opened.tensors[0])]
    assert sizes == [16 << 20, 16 << 20, 8 << 20]
