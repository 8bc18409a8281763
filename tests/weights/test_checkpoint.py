"""Checkpoints of several files: the index is checked against the files, and leads nowhere else."""

import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.checkpoint import has_tensors, read_checkpoint
from tests.weights.written import raw, save, tensors, write_index

ONE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
INDEX = "model.safetensors.index.json"


def refused(folder) -> str:
    with pytest.raises(CheckpointError, match=r"^RTPJ-30\d\d ") as caught:
        read_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("num_files", [1, 3])
def test_all_tensors_are_found(tmp_path, num_files):
    save(tmp_path, tensors(), num_files)
    checkpoint = read_checkpoint(tmp_path)
    assert has_tensors(tmp_path)
    assert len(checkpoint.files) == num_files
    assert checkpoint.tensors().keys() == tensors().keys()
    assert checkpoint.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_another_name_is_possible(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(raw({"a": ONE}, b"1"))
    assert list(read_checkpoint(tmp_path, "adapter_model.safetensors").tensors()) == ["a"]


def test_missing_files_are_named(tmp_path):
    save(tmp_path, tensors(), 3)
    (tmp_path / "model-1.safetensors").unlink()
    message = refused(tmp_path)
    assert "RTPJ-3015 SHARDS_MISSING" in message
    assert "names 3 files, 1 are not there: model-1.safetensors" in message


def test_an_empty_folder_lacks_the_file(tmp_path):
    assert "RTPJ-3010 FILE_MISSING" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["../out", "/etc/hosts", "a/../../out", "", "a\\b", "a\0", "a\n", "..", "x" * 300]
)
def test_a_file_outside_of_the_folder_is_not_opened(tmp_path, name):
    (tmp_path / "out").write_bytes(raw({"a": ONE}, b"1"))
    (tmp_path / "model").mkdir()
    write_index(tmp_path / "model", {"a": name})
    message = refused(tmp_path / "model")
    assert "FILE_OUTSIDE" in message or (len(name) == 300 and "SHARDS_MISSING" in message)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])
def test_an_index_of_another_form_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    assert INDEX in refused(tmp_path)


def test_names_in_an_index_are_printable(tmp_path):
    (tmp_path / INDEX).write_text('{"weight_map": {"\\ud800": "a.safetensors"}}')
    assert "INDEX_WRONG" in refused(tmp_path)


def test_a_tensor_that_is_not_where_the_index_says_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(raw({name: ONE}, b"1"))
    write_index(tmp_path, {"a": "b.safetensors", "b": "b.safetensors", "c": "a.safetensors"})
    message = refused(tmp_path)
    assert "RTPJ-3016 INDEX_WRONG" in message
    assert "2 tensors are not where it says: a in b.safetensors, c in a.safetensors" in message


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            raw({"t": ONE, name: {**ONE, "data_offsets": [1, 2]}}, b"12")
        )
    write_index(tmp_path, {"a": "a.safetensors", "b": "b.safetensors", "t": "a.safetensors"})
    assert "1 tensors are in two files: t" in refused(tmp_path)


def test_the_cache_of_the_hub_links_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "cafe").write_bytes(raw({"a": ONE}, b"1"))
    (snapshot / "model.safetensors").symlink_to("../../blobs/cafe")
    assert list(read_checkpoint(snapshot).tensors()) == ["a"]


@pytest.mark.parametrize(
    "folder", ["models--org--name/snapshots/0a1b", "plain/snapshots/0a1b", "m"]
)
def test_a_link_out_of_the_model_is_refused(tmp_path, folder):
    outside = tmp_path / "secret"
    outside.write_bytes(raw({"a": ONE}, b"1"))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "model.safetensors").symlink_to(outside)
    message = refused(tmp_path / folder)
    assert "RTPJ-3014 FILE_OUTSIDE" in message
    assert str(outside) in message


def test_a_link_beside_the_file_is_fine(tmp_path):
    (tmp_path / "weights").write_bytes(raw({"a": ONE}, b"1"))
    (tmp_path / "model.safetensors").symlink_to("weights")
    assert list(read_checkpoint(tmp_path).tensors()) == ["a"]


def test_a_link_to_itself_is_refused(tmp_path):
    write_index(tmp_path, {"a": "a.safetensors"})
    (tmp_path / "a.safetensors").symlink_to("a.safetensors")
    assert "RTPJ-301" in refused(tmp_path)
