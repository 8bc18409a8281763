"""How is a page record spelled outside the process?  The same way on disk and in a remote store.

    magic 8 | key 16 | parent 16 | digest 16 | bytes of token ids, of payload: uint64 each | both

Little-endian.  Reading trusts nothing: lengths must add up, and the digest is for the reader of the
record to check, as for every record.
"""

import struct

from rtp_jax.page_record import DIGEST_BYTES, PageRecord

MAGIC = b"RTPJKV\x00\x02"
HEAD = struct.Struct(f"<8s{DIGEST_BYTES}s{DIGEST_BYTES}s{DIGEST_BYTES}sQQ")


def head_of(record: PageRecord) -> bytes:
    """Spell everything of a record but its payload."""
    sizes = len(record.packed), len(record.payload)
    return HEAD.pack(MAGIC, record.key, record.parent, record.digest, *sizes) + record.packed


def size_of(record: PageRecord) -> int:
    """Count the bytes of a spelled record."""
    return HEAD.size + len(record.packed) + len(record.payload)


def record_from(content: bytes) -> PageRecord | None:
    """Read a record; None: these bytes are none."""
    if len(content) < HEAD.size:
        return None
    magic, key, parent, digest, num_packed, num_payload = HEAD.unpack_from(content)
    if magic != MAGIC or len(content) != HEAD.size + num_packed + num_payload:
        return None
    start = HEAD.size + num_packed
    return PageRecord(key, parent, content[HEAD.size : start], memoryview(content)[start:], digest)
