"""Reading: every byte once and in order at any block size; files that fail or change."""

import math
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.parts import Run, parts_of
from rtp_jax.weights.reader import Reading, read_parts
from rtp_jax.weights.safetensors import read_header
from tests.weights.written import counted, raw

DATA = bytes(range(250)) * 3
SIZES = [200, 0, 7, 3, 40, 500]


@pytest.fixture
def header(tmp_path):
    ends = np.cumsum(SIZES)
    entries = {
        f"t{i}": {"dtype": "U8", "shape": [size], "data_offsets": [int(end) - size, int(end)]}
        for i, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    }
    (tmp_path / "a.safetensors").write_bytes(raw(entries, DATA))
    return read_header(tmp_path / "a.safetensors")


def parts(header, part_bytes=90):
    return list(parts_of(Run(header, header.tensors), lambda _: 1, part_bytes))


class Memory:
    """A sink that keeps what it gets, in pieces, and may have room for few parts."""

    def __init__(self, room=math.inf, pieces=1):
        self.room, self.pieces = room, pieces
        self.opened, self.came, self.waits = [], b"", 0

    def open(self, part):
        if len(self.opened) >= self.room:
            return None
        memory = np.zeros(part.size, np.uint8)
        self.opened.append((part, memory))
        return np.array_split(memory, self.pieces) if part.size else []

    def full(self, part):
        opened, memory = self.opened.pop(0)
        assert opened is part
        self.came += memory.tobytes()

    def wait(self):
        self.waits += 1
        self.room += 1


def read(header, how, sink=None, files=1):
    sink = sink or Memory()
    counts = []
    read_parts([(header, parts(header))] * files, sink, how, counts.append)
    assert sum(counts) == len(sink.came)
    return sink.came


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("size", [1, 13, 64, 100, 749, 750, 1024, 4096])
def test_every_byte_comes_once_and_in_order(header, size, readers):
    how, counts = counted(Reading(block_bytes=size, readers=readers))
    assert read(header, how, files=2) == DATA * 2
    assert sum(counts) == 2 * len(DATA)


def test_blocks_end_at_multiples_of_their_size_and_go_forward(header):
    asked = []

    def note(descriptor, pieces, offset):
        asked.append((offset, sum(piece.nbytes for piece in pieces)))
        return os.preadv(descriptor, pieces, offset)

    read(header, Reading(block_bytes=128, readers=1, read=note))
    ends = [offset + count for offset, count in asked]
    assert [offset for offset, _ in asked[1:]] == ends[:-1]
    assert asked[0][0] == header.data_start
    assert all(end % 128 == 0 for end in ends[:-1])


def test_memory_may_come_in_more_pieces_than_one_call_takes(header, monkeypatch):
    monkeypatch.setattr("rtp_jax.weights.reader.MAX_PIECES", 3)
    assert read(header, Reading(block_bytes=512), Memory(pieces=7)) == DATA


@pytest.mark.parametrize("room", [1, 2])
def test_reading_waits_for_room(header, room):
    sink = Memory(room)
    assert read(header, Reading(block_bytes=1000), sink) == DATA
    assert sink.room == room  # what was read made room


def test_without_anything_to_read_it_waits_for_the_sink(header):
    sink = Memory(room=0)
    assert read(header, Reading(), sink) == DATA
    assert sink.waits == 1


def test_several_threads_read_at_a_time(header):
    running, most = 0, 0
    lock = threading.Lock()

    def slow(descriptor, pieces, offset):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return os.preadv(descriptor, pieces, offset)

    assert read(header, Reading(block_bytes=50, readers=3, ahead=3, read=slow)) == DATA
    assert most == 3


def test_short_reads_are_continued(header):
    def hesitant(descriptor, pieces, offset):
        return os.preadv(descriptor, [pieces[0][:7]], offset)

    assert read(header, Reading(block_bytes=100, read=hesitant)) == DATA


def test_a_failing_disk_is_an_error_with_the_name_of_the_file(header):
    def broken(descriptor, pieces, offset):
        raise OSError(5, "Input/output error")

    with pytest.raises(CheckpointError, match=r"RTPJ-3011 .*a\.safetensors.*Input/output error"):
        read(header, Reading(read=broken))


def test_a_file_that_changed_since_its_header_was_read_is_refused(header):
    os.utime(header.path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="RTPJ-3100 FILE_CHANGED"):
        read(header, Reading())


@pytest.mark.parametrize("change", ["shrinks", "is touched"])
def test_a_file_that_changes_while_it_is_read_is_refused(header, change):
    def meddling(descriptor, pieces, offset):
        if change == "shrinks":
            os.truncate(header.path, 300)
        else:
            os.utime(header.path, ns=(0, 0))
        return os.preadv(descriptor, pieces, offset)

    message = r"RTPJ-3100 FILE_CHANGED.*" + (
        "ends early, at byte .* within tensor t" if change == "shrinks" else "inode"
    )
    with pytest.raises(CheckpointError, match=message):
        read(header, Reading(block_bytes=64, read=meddling))


def test_what_fails_leaves_no_thread_and_no_open_file(header):
    class Full(Memory):
        def full(self, part):
            raise MemoryError

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError):
        read(header, replace(Reading(), block_bytes=64), Full())
    assert not [t for t in threading.enumerate() if t.name.startswith("read-weights")]
    assert set(os.listdir("/proc/self/fd")) == before
