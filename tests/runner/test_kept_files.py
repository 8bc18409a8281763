"""Files that survive the process: whole, or as if they were not there."""

import logging

from rtp_jax.runner import kept_files


def test_what_is_written_is_read(tmp_path):
    kept_files.write(tmp_path / "one", b"some bytes")
    assert kept_files.read(tmp_path / "one") == b"some bytes"
    assert [file.name for file in tmp_path.iterdir()] == ["one"]


def test_what_is_not_there_is_nothing(tmp_path):
    assert kept_files.read(tmp_path / "one") is None


def test_a_damaged_file_counts_as_none(tmp_path, caplog):
    kept_files.write(tmp_path / "one", b"some bytes")
    content = (tmp_path / "one").read_bytes()
    for damaged in (content[:-1], content[:-1] + b"!", b""):
        (tmp_path / "one").write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert kept_files.read(tmp_path / "one") is None
        assert "one is damaged" in caplog.text
        caplog.clear()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, caplog):
    (tmp_path / "one").mkdir()
    with caplog.at_level(logging.WARNING):
        kept_files.write(tmp_path / "one", b"some bytes")
    assert "one is not kept" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["one"]
