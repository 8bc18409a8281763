"""From frames to pages: what is not exactly the page that comes next goes no further."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rtp_jax.page_record import KvLayout, PageRecord
from rtp_jax.wire import kv_pb2 as pb


@dataclass(frozen=True, slots=True)
class AskedPage:
    """What a page must be."""

    key: bytes
    parent: bytes
    packed: bytes  # token ids, little-endian uint32 each


class Corrupt(Exception):
    """A frame that is not what it should be: the stream it came with is given up."""


class Assembly:
    """Puts the pages of one stream together and checks place, identity, size and digest."""

    def __init__(self, wanted: Sequence[AskedPage], at: int, first_page: int, layout: KvLayout):
        """Expect page `at` next, of those that are wanted from `first_page` on."""
        self.at = at
        self._wanted, self._first, self._page_bytes = wanted, first_page, layout.page_bytes
        self._pieces = bytearray()  # of a page that is larger than a frame

    @property
    def complete(self) -> bool:
        """True if no page is missing."""
        return self.at == self._first + len(self._wanted)

    def pages(
        self, frame: pb.PageFrame, payloads: Sequence[bytes | memoryview]
    ) -> Iterator[PageRecord]:
        """Yield the pages that a frame completes; their bytes may have come another way.

        Raises:
          Corrupt: something is not what was asked for.
        """
        if frame.first_page != self.at:
            raise Corrupt(f"page {frame.first_page} came and {self.at} was next")
        for page, payload in zip(frame.pages, payloads, strict=True):
            if self.complete:
                raise Corrupt(f"page {self.at - 1} is the last one, and more came")
            if (record := self._next(page, payload)) is not None:
                self.at += 1
                yield record

    def _next(self, page: pb.Page, payload: bytes | memoryview) -> PageRecord | None:
        wanted, size = self._wanted[self.at - self._first], self._page_bytes
        if page.key != wanted.key or page.offset != len(self._pieces):
            raise Corrupt(f"page {self.at} is not the one that was asked for")
        arrived = len(self._pieces) + len(payload)
        if not payload or arrived > size:
            raise Corrupt(f"{arrived} bytes came of page {self.at}, which has {size}")
        if arrived < size:
            self._pieces += payload
            return None
        if self._pieces:
            payload, self._pieces = bytes(self._pieces + payload), bytearray()
        record = PageRecord(wanted.key, wanted.parent, wanted.packed, payload, page.digest)
        if not record.sound:
            raise Corrupt(f"the bytes of page {self.at} are not those that were sent")
        return record
