"""A KV page outside the device: its identity, its bytes, and a digest of them.

    payload     for each KV group: pages[page] as it lies in memory, then scales[page]
    digest      of key, parent, token ids and payload

Whoever hands pages on (tiers, transfers) hands on records; whoever takes one checks it before its
bytes reach the device.  Two engines understand each other's pages if their layouts are equal.

`PageMoves` is what the scheduler asks of the runner between two steps: pages to read, each into a
record, and pages to write.  Read next: `cache/page_identity.py` for keys, `kernels/pages.py` for
what a page is, `runner/page_moves.py` for how its bytes come and go.
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

DIGEST_BYTES = 16
LAYOUT_VERSION = 2  # of the order of bytes in a payload, and of digests


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """One KV group of a page: [layers, 2, kv_heads, page_size, head_dim] and its scales."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str  # of the stored bits, by NumPy's name
    scales: bool  # float32 [layers, 2, kv_heads, page_size] follow

    def page_bytes(self, page_size: int) -> int:
        """Bytes of the group's part of a page."""
        of_head = self.head_dim * np.dtype(self.dtype).itemsize + 4 * self.scales
        return math.prod((self.layers, 2, self.kv_heads, page_size)) * of_head


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What must be equal between two engines that exchange pages; the mesh is not part of it."""

    groups: tuple[GroupLayout, ...]
    page_size: int
    model_epoch: str
    kv_scheme: str
    version: int = LAYOUT_VERSION

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that are equal where layouts are."""
        return hashlib.blake2b(repr(self).encode(), digest_size=DIGEST_BYTES).digest()

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's payload."""
        return sum(group.page_bytes(self.page_size) for group in self.groups)


@dataclass(frozen=True, slots=True)
class PageRecord:
    """One full page with its bytes, on the host."""

    key: bytes  # page identity, 16 bytes
    parent: bytes  # identity of the page before, or the root
    packed: bytes  # token ids, little-endian uint32 each
    payload: bytes | memoryview
    digest: bytes

    @property
    def sound(self) -> bool:
        """True if the digest is that of the content; reads all of it."""
        return self.digest == digest_of(self.key, self.parent, self.packed, self.payload)


Sink = Callable[[PageRecord | None], None]


@dataclass(frozen=True, slots=True)
class PageRead:
    """A page whose bytes somebody wants.

    The sink is called once, soon and on another thread, with the record, or with None if the page
    could not be read.  It must not block.
    """

    page: int
    key: bytes
    parent: bytes
    packed: bytes
    sink: Sink


@dataclass(frozen=True, slots=True)
class PageWrite:
    """Bytes on their way into pages."""

    staged: Any  # what the runner made of some payloads, in their order
    pages: list[int]  # where each payload goes; 0: nowhere


@dataclass(frozen=True, slots=True)
class PageMoves:
    """What happens to pages before the next step: all reads, then all writes."""

    reads: list[PageRead]
    writes: list[PageWrite]

    def __bool__(self) -> bool:
        return bool(self.reads or self.writes)


def record_of(key: bytes, parent: bytes, packed: bytes, payload: bytes | memoryview) -> PageRecord:
    """Make a record of a page's bytes."""
    return PageRecord(key, parent, packed, payload, digest_of(key, parent, packed, payload))


def digest_of(key: bytes, parent: bytes, packed: bytes, payload: bytes | memoryview) -> bytes:
    """Return the digest of a page: XXH3 of 128 bits, against damage and not against forgery.

    Whoever may write to a store may write a digest, too, so a slower one would protect no more.
    """
    hasher = xxhash.xxh3_128()
    for field in (key, parent, packed):
        hasher.update(struct.pack("<Q", len(field)))
        hasher.update(field)
    hasher.update(payload)
    return hasher.digest()
