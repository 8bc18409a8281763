"""Headers: what the format's own library writes is read, everything malformed is refused."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.safetensors import MAX_HEADER_BYTES, read_header
from tests.weights.written import raw, tensors


def entry(dtype="F32", shape=(1,), begin=0, end=4, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^RTPJ-30\d\d ") as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_of_the_library_is_read(tmp_path):
    source = tensors() | {"none": np.zeros((0, 3), np.int8), "scalar": np.array(3.0)}
    save_file(source, tmp_path / "a.safetensors", metadata={"format": "np"})
    header = read_header(tmp_path / "a.safetensors")
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors}
    assert found == {name: (array.dtype, array.shape) for name, array in source.items()}
    assert header.size == (tmp_path / "a.safetensors").stat().st_size
    assert header.data_start + header.tensors[-1].end == header.size


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"a": entry(begin=4, end=8), "b": entry(), "empty": entry(shape=(0,), begin=4, end=4)}
    path.write_bytes(raw(header, bytes(8)))
    assert [tensor.name for tensor in read_header(path).tensors] == ["b", "empty", "a"]


MALFORMED = {
    "a hole": ({"a": entry(), "b": entry(begin=5, end=9)}, 9, "follows a hole"),
    "a hole in front": ({"a": entry(begin=4, end=8)}, 8, "follows a hole"),
    "bytes behind": ({"a": entry()}, 5, "its data has 5"),
    "data is cut off": ({"a": entry(shape=(4,), end=16)}, 15, "not inside the data of 15 bytes"),
    "overlap": (
        {"a": entry(shape=(2,), end=8), "b": entry(begin=4, end=8)},
        8,
        "tensor 'b': it begins at byte 4 and overlaps",
    ),
    "backwards": ({"a": entry(begin=4, end=0)}, 4, "data_offsets"),
    "negative offset": ({"a": entry(begin=-4, end=0)}, 4, "data_offsets"),
    "fractional offset": ({"a": entry(begin=0.0)}, 4, "data_offsets"),
    "huge offset": ({"a": entry(end=10**300)}, 4, "data_offsets"),
    "three offsets": ({"a": {**entry(), "data_offsets": [0, 2, 4]}}, 4, "lacks"),
    "too small": ({"a": entry(shape=(2,))}, 4, r"F32 \[2\] needs 8 bytes, it has 4"),
    "too large": ({"a": entry(end=8)}, 8, r"F32 \[1\] needs 4 bytes, it has 8"),
    "negative size": ({"a": entry(shape=(-1, -1))}, 4, "not a list of sizes"),
    "true as a size": ({"a": entry(shape=(True,))}, 4, "not a list of sizes"),
    "size in words": ({"a": entry(shape=("1",))}, 4, "not a list of sizes"),
    "huge size": ({"a": entry(shape=(0, 1 << 60), end=0)}, 0, "not a list of sizes"),
    "many axes": ({"a": entry(shape=(1,) * 33)}, 4, "not a list of sizes"),
    "unknown dtype": ({"a": entry(dtype="F31")}, 4, "dtype is 'F31', known are BOOL"),
    "dtype of a code": ({"a": entry(dtype=7)}, 4, "lacks a dtype"),
    "unknown field": ({"a": entry(code="x")}, 4, "unknown fields"),
    "not a record": ({"a": [1, 2]}, 4, "lacks a dtype"),
    "no name": ({"a\n\x1b[31m": entry()}, 4, "that is not a name"),
    "half a character": (b'{"\\ud800": {}}', 0, "that is not a name"),
    "long name": ({"a" * 1001: entry()}, 4, "that is not a name"),
    "the same name twice": (
        b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2),
        4,
        "'a' occurs twice",
    ),
    "not JSON": (b"{'a': 1}", 0, "Expecting property name"),
    "cut off JSON": (b'{"a": {"dtype"', 0, "where the file ends"),
    "not UTF-8": (b'{"\xff": 1}', 0, "byte 2 is not UTF-8"),
    "a list": ([1], 0, "holds a list where an object belongs"),
    "nested": (b'{"a":' * 100_000, 0, "nested too deeply"),
    "a number of thousands of digits": (b'{"a": ' + b"9" * 5000 + b"}", 0, "JSON_INVALID"),
    "nothing": (b"", 0, "JSON_INVALID"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused(tmp_path, case):
    header, data_bytes, reason = MALFORMED[case]
    message = refused(tmp_path / "a.safetensors", raw(header, bytes(data_bytes)))
    assert re.search(reason, message)


STRANGERS = {
    b"PK\x03\x04": "PyTorch",
    b"\x80\x02}q": "pickle",
    b"GGUF\x03": "GGUF",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:": "git lfs pull",
    b"<!DOCTYPE html>": "web page",
}


@pytest.mark.parametrize("beginning", STRANGERS)
def test_another_format_in_disguise_is_recognised(tmp_path, beginning):
    message = refused(tmp_path / "model.safetensors", beginning + bytes(200))
    assert STRANGERS[beginning] in message


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 30])
def test_a_truncated_file_is_refused(tmp_path, size):
    whole = raw({"a": entry()}, bytes(4))
    assert "RTPJ-3020 SAFETENSORS_INVALID" in refused(tmp_path / "a", whole[:size])


def test_a_header_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, MAX_HEADER_BYTES + 100)  # a hole: takes no room on the disk
    with pytest.raises(CheckpointError, match="announces a header of 100000001"):
        read_header(path)


def test_what_is_not_an_ordinary_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CheckpointError, match="RTPJ-3011 FILE_UNREADABLE"):
            read_header(path)
    with pytest.raises(CheckpointError, match="RTPJ-3010 FILE_MISSING"):
        read_header(tmp_path / "nothing")
