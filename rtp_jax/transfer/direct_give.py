"""What waits to be fetched over the direct transport, and for how long?

    give -> fetched, as the taker says | its time is over, and a sweep drops it

The direct transport tells nobody what became of an array.  So the taker names what has arrived in
its next message, and what nobody names is dropped when the time of its lease is over.  What may
wait is bounded: without room, pages go in frames.

A taker that dies in the middle may leave the place where arrays wait unable to send another one
(jax's server then keeps one of its few buffers for ever).  Nobody says so either; but then arrays
are not fetched, and after that they are given elsewhere.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.direct import DirectEnd, DirectFailed
from rtp_jax.wire import kv_pb2 as pb

logger = logging.getLogger(__name__)
ARRAY_BYTES = 8 << 20  # of pages that travel together; one larger page travels alone
MAX_PAGES = 64  # in an array
SWEEP_LATE_S = 0.05  # after the time of an array, so that no clock finds it too early


@dataclass(slots=True)
class GivenCounts:
    """Arrays that were given, and what became of them."""

    given: int = 0
    fetched: int = 0  # as their takers say
    unfetched: int = 0  # dropped when their time was over
    refused: int = 0  # for want of room, or because they could not be held: sent in frames
    renewed: int = 0  # after some were not fetched
    bytes: int = 0  # that wait now


class Giving:
    """Holds pages for their takers; every method may be called from any thread."""

    def __init__(self, end: DirectEnd, *, max_bytes: int, keep_s: float):
        """Give nothing yet.

        Args:
          end: what holds arrays.
          max_bytes: that may wait at a time.
          keep_s: how long an array waits.
        """
        self.counts = GivenCounts()
        self._end, self._max_bytes, self._keep_s = end, max_bytes, keep_s
        self._waiting: dict[int, tuple[int, float]] = {}  # id to bytes, time.monotonic()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._renews_s = 0.0  # not before
        self._closed = False

    def frame(self, at: int, records: Sequence[PageRecord]) -> pb.PageFrame | None:
        """Give pages from `at` on, and return what names them; None: they must go in frames."""
        num_bytes, array_id = sum(len(each.payload) for each in records), secrets.randbits(63) | 1
        if not self._reserved(array_id, num_bytes):
            return None
        try:
            port = self._end.give(array_id, [each.payload for each in records], self._keep_s)
        except (DirectFailed, MemoryError):
            with self._changed:
                self._forget(array_id)
                self.counts.refused += 1
            return None
        pages = [pb.Page(key=each.key, digest=each.digest) for each in records]
        return pb.PageFrame(first_page=at, pages=pages, direct=array_id, direct_port=port)

    def fetched(self, array_ids: Iterable[int]) -> None:
        """Take a taker's word for what has arrived; what is not known any more is passed over."""
        with self._changed:
            for array_id in array_ids:
                self.counts.fetched += self._forget(array_id)

    def close(self) -> None:
        """Drop what still waits, once its time is over, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _reserved(self, array_id: int, num_bytes: int) -> bool:
        with self._changed:
            if self._closed or self.counts.bytes + num_bytes > self._max_bytes:
                self.counts.refused += 1
                return False
            self.counts.given += 1
            self.counts.bytes += num_bytes
            until_s = time.monotonic() + self._keep_s + SWEEP_LATE_S
            self._waiting[array_id] = (num_bytes, until_s)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._sweep_late, name="rtp-direct-given", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        return True

    def _forget(self, array_id: int) -> bool:
        num_bytes, _ = self._waiting.pop(array_id, (0, 0.0))
        self.counts.bytes -= num_bytes
        return num_bytes > 0

    def _sweep_late(self) -> None:
        """Drop what nobody fetched in time; the body of the thread."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now_s = time.monotonic()
                ends_s = {array_id: until_s for array_id, (_, until_s) in self._waiting.items()}
                late = [array_id for array_id, until_s in ends_s.items() if until_s <= now_s]
                if not late:
                    self._changed.wait(min(ends_s.values()) - now_s if ends_s else None)
                    continue
            try:
                self._end.sweep()
                self._renew()
            except (RuntimeError, ValueError, OSError, MemoryError):  # the thread goes on
                logger.exception("what nobody fetched may still be held by the direct transport")
            finally:
                with self._changed:
                    for array_id in late:
                        self.counts.unfetched += self._forget(array_id)

    def _renew(self) -> None:
        """Give from elsewhere after a loss: whoever died there may have jammed it for all."""
        now_s = time.monotonic()
        if now_s >= self._renews_s:  # what waits there may still be fetched
            self._renews_s = now_s + self._keep_s + SWEEP_LATE_S
            self.counts.renewed += 1
            self._end.renew()


def pages_at_once(page_bytes: int) -> int:
    """Say how many pages travel in one array."""
    return max(min(ARRAY_BYTES // page_bytes, MAX_PAGES), 1)
