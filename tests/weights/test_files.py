"""Small files: read whole within a limit, and parsed as one JSON object."""

import os
from pathlib import Path

import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import read_json, read_small


def test_an_object_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"a": [1, {"b": null}], "limit": Infinity}')
    assert read_json(tmp_path / "config.json") == {"a": [1, {"b": None}], "limit": float("inf")}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "RTPJ-3013 JSON_INVALID"),
        (b'{"a": 1', "where the file ends"),
        (b'{"a": \xff}', "byte 6 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON_INVALID"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_large_file_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_small(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(
        CheckpointError, match=r"RTPJ-3012 FILE_TOO_LARGE.* has 11 bytes, at most 10"
    ):
        read_small(tmp_path / "a", 10)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        read_json(tmp_path / "config.json")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs /proc")
def test_a_file_that_fails_to_read_is_named():
    with pytest.raises(CheckpointError, match=r"RTPJ-3011 FILE_UNREADABLE: /proc/self/mem"):
        read_small(Path("/proc/self/mem"))
