"""Reading: every byte once and in order at any block size; files that fail or change."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights import reader
from rtp_jax.weights.reader import ByteStream, read_blocks
from rtp_jax.weights.safetensors import read_header
from tests.weights.written import raw

DATA = bytes(range(250)) * 3


@pytest.fixture
def header(tmp_path):
    entry = {"dtype": "U8", "shape": [len(DATA)], "data_offsets": [0, len(DATA)]}
    (tmp_path / "a.safetensors").write_bytes(raw({"a": entry}, DATA))
    return read_header(tmp_path / "a.safetensors")


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def buffers(size: int):
    return np.empty(size, np.uint8), np.empty(size, np.uint8)


class Hesitant(io.FileIO):
    """A file of which one read returns at most seven bytes, as a signal or a network may cause."""

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:7])


class Broken(io.FileIO):
    """A file on a disk that fails."""

    def readinto(self, buffer):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("size", [1, 13, 64, 100, 749, 750, 1024, 4096])
def test_every_byte_comes_once_and_in_order(header, thread, size):
    counts = []
    blocks = read_blocks(header, thread, buffers(size), counts.append)
    assert b"".join(block.tobytes() for block in blocks) == DATA
    assert sum(counts) == len(DATA)


def test_blocks_end_at_multiples_of_their_size(header, thread):
    sizes = [block.size for block in read_blocks(header, thread, buffers(128), lambda _: None)]
    assert (header.data_start + sizes[0]) % 128 == 0
    assert set(sizes[1:-1]) == {128}


def test_short_reads_are_continued(header, thread, monkeypatch):
    monkeypatch.setattr(reader, "open_regular", Hesitant)
    blocks = read_blocks(header, thread, buffers(100), lambda _: None)
    assert b"".join(block.tobytes() for block in blocks) == DATA


def test_a_failing_disk_is_an_error_with_the_name_of_the_file(header, thread, monkeypatch):
    monkeypatch.setattr(reader, "open_regular", Broken)
    with pytest.raises(CheckpointError, match=r"RTPJ-3011 .*a\.safetensors.*Input/output error"):
        list(read_blocks(header, thread, buffers(100), lambda _: None))


def test_a_file_that_changed_since_its_header_was_read_is_refused(header, thread):
    os.utime(header.path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="RTPJ-3100 FILE_CHANGED"):
        list(read_blocks(header, thread, buffers(100), lambda _: None))


def test_a_file_that_shrinks_while_it_is_read_is_refused(header, thread):
    with closing(read_blocks(header, thread, buffers(64), lambda _: None)) as blocks:
        next(blocks)
        os.truncate(header.path, 300)
        with pytest.raises(CheckpointError, match=r"RTPJ-3100 FILE_CHANGED.* bytes early"):
            list(blocks)


def test_a_file_that_changes_while_it_is_read_is_refused(header, thread):
    with closing(read_blocks(header, thread, buffers(64), lambda _: None)) as blocks:
        next(blocks)
        os.utime(header.path, ns=(0, 0))
        with pytest.raises(CheckpointError, match="RTPJ-3100 FILE_CHANGED"):
            list(blocks)


def test_a_reader_that_is_left_early_leaves_nothing_behind(header, thread):
    blocks = read_blocks(header, thread, buffers(64), lambda _: None)
    next(blocks)
    blocks.close()
    assert thread.submit(lambda: 3).result() == 3


@pytest.mark.parametrize("size", [5, 64, 4096])
def test_a_stream_is_cut_anywhere(header, thread, size):
    blocks = read_blocks(header, thread, buffers(size), lambda _: None)
    stream, staging, random = ByteStream(blocks), np.empty(200, np.uint8), np.random.default_rng(0)
    found = b""
    while left := len(DATA) - len(found):
        count = min(left, int(random.integers(0, 200)))
        match random.integers(3):
            case 0:
                found += stream.take(count, staging).tobytes()
            case 1:
                target = np.empty(count, np.uint8)
                stream.fill(target)
                found += target.tobytes()
            case _:
                found += b"".join(piece.tobytes() for piece in stream.pieces(count))
    stream.finish()
    assert found == DATA
