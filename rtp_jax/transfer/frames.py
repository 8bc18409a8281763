"""Pages as messages on the wire, spelled with one copy of their bytes.

A `PageFrame` is spelled here from its parts, as protobuf would do it: a field is its tag, length
and bytes, and the fields of a message may come in any order.  protobuf itself copies a payload
into a message and from there into bytes, on a core that computes the next pages meanwhile.
Source: the protobuf encoding guide, "Length-Delimited Records".
"""

from collections.abc import Iterator, Sequence

from rtp_jax.page_record import PageRecord
from rtp_jax.wire import kv_pb2 as pb

Bytes = bytes | memoryview
LENGTH_DELIMITED = 2  # the wire type of messages and bytes


def _tag(message: type, field: str) -> bytes:
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    """Spell a number, seven bits to a byte, the lowest first."""
    spelled = bytearray()
    while value > 0x7F:
        spelled.append(value & 0x7F | 0x80)
        value >>= 7
    spelled.append(value)
    return bytes(spelled)


PAGES, PAYLOAD = _tag(pb.PageFrame, "pages"), _tag(pb.Page, "payload")


def frames(at: int, records: Sequence[PageRecord], most: int, *, last: bool) -> Iterator[bytes]:
    """Spell records as `PageFrame`s of at most `most` bytes of payload, from page `at` on.

    Larger pages go in pieces, each in a frame of its own.  With `last` these are the offer's last
    pages, and the last frame says so.
    """
    if sum(len(each.payload) for each in records) <= most:
        if records:
            yield _frame(at, [(each, 0, each.payload) for each in records], last)
        return
    for number, record in enumerate(records):
        payload = memoryview(record.payload)
        for start in range(0, len(payload), most):
            piece = payload[start : start + most]
            ends = number == len(records) - 1 and start + len(piece) == len(payload)
            yield _frame(at + number, [(record, start, piece)], last and ends)


def _frame(at: int, pieces: Sequence[tuple[PageRecord, int, Bytes]], last: bool) -> bytes:
    """Spell a frame of pages, each with its bytes from an offset on."""
    parts: list[Bytes] = [pb.PageFrame(first_page=at, last=last).SerializeToString()]
    for record, offset, payload in pieces:
        head = pb.Page(key=record.key, digest=record.digest, offset=offset).SerializeToString()
        head += PAYLOAD + _varint(len(payload))
        parts += [PAGES + _varint(len(head) + len(payload)), head, payload]
    return b"".join(parts)
