"""Frames are what protobuf would have written."""

import random

import pytest

from rtp_jax.page_record import PageRecord, record_of
from rtp_jax.transfer.frames import frames
from rtp_jax.wire import kv_pb2 as pb


def records(*sizes: int, view: bool = False) -> list[PageRecord]:
    """Make records of some sizes."""
    random_ = random.Random(3)
    payloads = [random_.randbytes(size) for size in sizes]
    keys = [random_.randbytes(16) for _ in sizes]
    return [
        record_of(key, b"parent", b"ids!", memoryview(payload) if view else payload)
        for key, payload in zip(keys, payloads, strict=True)
    ]


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "sizes", [(1,), (100, 28, 27, 26), (127, 128, 129), (16384, 16383), (1 << 21,)]
)
def test_a_frame_is_what_protobuf_writes(sizes, last, view):
    (data,) = frames(300, pages := records(*sizes, view=view), sum(sizes), last=last)
    wanted = pb.PageFrame(
        first_page=300,
        last=last,
        pages=[pb.Page(key=r.key, digest=r.digest, payload=bytes(r.payload)) for r in pages],
    )
    frame = pb.PageFrame.FromString(data)
    assert frame == wanted
    assert len(data) == wanted.ByteSize()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("most", [1, 7, 64, 99])
def test_larger_pages_go_in_pieces(most, last):
    pages = records(100, 100, 64)
    came = [pb.PageFrame.FromString(data) for data in frames(5, pages, most, last=last)]
    assert [frame.last for frame in came] == [False] * (len(came) - 1) + [last]
    whole = {5: b"", 6: b"", 7: b""}
    for frame in came:
        (piece,) = frame.pages
        assert 0 < len(piece.payload) <= most
        assert piece.offset == len(whole[frame.first_page])
        whole[frame.first_page] += piece.payload
        assert piece.key == pages[frame.first_page - 5].key
        assert piece.digest == pages[frame.first_page - 5].digest
    assert list(whole.values()) == [page.payload for page in pages]


def test_no_page_is_no_frame():
    assert list(frames(0, [], 100, last=True)) == []
