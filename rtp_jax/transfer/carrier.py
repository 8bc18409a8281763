"""Where do the bytes of the pages in a frame come from?  From the frame, or from where it says.

Whatever carries them, they are the same pages in the same order under the same digests; what does
not come one way comes the other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from rtp_jax.transfer.assembly import Corrupt
from rtp_jax.transfer.direct_give import pages_at_once
from rtp_jax.transfer.direct_take import Giver, Taking, Wish
from rtp_jax.wire import kv_pb2 as pb


class Carrier(Protocol):
    """Brings the bytes of one stream's pages."""

    @property
    def direct(self) -> bool:
        """Whether frames may only name their bytes."""
        ...

    def payloads(self, frame: pb.PageFrame, until_s: float) -> Sequence[bytes]:
        """Return the bytes of each page of a frame, as they came; by `until_s` at the latest.

        Raises:
          Corrupt: the frame is none that was asked for.
          DirectFailed: they did not come.
        """
        ...

    def doubt(self, reason: str) -> None:
        """Learn that bytes were not those that were sent."""
        ...


class InFrames:
    """The bytes are where their pages are."""

    direct = False

    def payloads(self, frame: pb.PageFrame, until_s: float) -> Sequence[bytes]:
        """Return what is in the frame."""
        if frame.direct:
            raise Corrupt("a frame has no bytes, and says that they come another way")
        return [page.payload for page in frame.pages]

    def doubt(self, reason: str) -> None:
        """Nothing to do: they are asked for again."""


class ByLink:
    """The bytes wait with the peer, unless they are in the frame for want of room there."""

    direct = True

    def __init__(
        self,
        taking: Taking,
        giver: Giver,
        page_bytes: int,
        stop: Wish,
        fetched: list[int],
    ):
        """Take from one peer; ids of what has arrived are added to `fetched`."""
        self._taking, self._giver, self._page_bytes = taking, giver, page_bytes
        self._stop, self._fetched = stop, fetched
        self._last: Giver | None = None  # where the last frame's bytes wait; None: they were in it

    def payloads(self, frame: pb.PageFrame, until_s: float) -> Sequence[bytes]:
        """Fetch what the frame names; a copy of each page, so that none holds all the others."""
        self._last = None
        if not frame.direct:
            return [page.payload for page in frame.pages]
        self._last = there = dataclasses.replace(self._giver, port=frame.direct_port)
        size, count = self._page_bytes, len(frame.pages)
        if not 0 < count <= pages_at_once(size) or any(page.payload for page in frame.pages):
            raise Corrupt(f"a frame names {count} pages at once, or has bytes of its own as well")
        if not 0 < frame.direct_port < 1 << 16:
            raise Corrupt(f"a frame says that its bytes wait at port {frame.direct_port}")
        came = self._taking.take(there, frame.direct, count * size, until_s, self._stop)
        self._fetched.append(frame.direct)
        return [bytes(came[at : at + size]) for at in range(0, count * size, size)]

    def doubt(self, reason: str) -> None:
        """Take no more bytes from the peer in this way for a while, if they came in it."""
        if self._last is not None:
            self._taking.suspect(self._last, reason)
