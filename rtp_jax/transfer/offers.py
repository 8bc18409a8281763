"""Which pages are held for whom, and until when?

    open -> publish page by page -> ack | release | lease over | deadline over | engine closed

An offer holds copies on the host, made while the prefill goes on: device pages go back to the
prefix cache at once, and whoever reads late reads his own bytes or is refused, never the bytes of
somebody else.  The lease is renewed by whoever pulls; a thread ends offers whose time is up, also
when nothing else happens.  What an offer may come to hold is reserved when it is opened, so the
budget holds whatever is published later.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rtp_jax.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from rtp_jax.page_record import PageRecord

NUM_REMEMBERED = 256  # ended offers whose end can still be explained
RETRY_AFTER_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillAsk:
    """Which pages somebody wants."""

    request_id: str  # the asker's
    token_ids: Sequence[int]
    cache_salt: str
    first_page: int
    priority: int
    deadline_s: float  # time.monotonic(); absolute


@dataclass(slots=True, eq=False)
class Offer:
    """Pages that are, or will be, there for one asker."""

    id: str
    request_id: str  # the asker's
    first_page: int  # pages before it are with the asker
    num_pages: int  # from page 0 on
    num_bytes: int  # reserved
    deadline_s: float  # time.monotonic()
    lease_until_s: float
    pages: dict[int, PageRecord] = field(default_factory=dict)
    failure: str | None = None  # why no page follows
    num_taken: int = 0  # pages before this one have been sent
    num_behind: int = 0  # pages that had not been sent when the last one was published
    complete_s: float = 0.0  # time.monotonic(), then
    watchers: set[Callable[[], None]] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """True if every page is there."""
        return len(self.pages) == self.num_pages - self.first_page


@dataclass(slots=True)
class OfferCounts:
    """How offers have ended so far, and what they hold now."""

    opened: int = 0
    refused: int = 0
    acked: int = 0
    released: int = 0
    expired: int = 0  # lease or deadline
    published: int = 0  # pages
    open: int = 0
    bytes: int = 0  # reserved


class Offers:
    """All offers of one engine; every method may be called from any thread."""

    def __init__(
        self,
        *,
        epoch: str,
        lease_s: float,
        max_bytes: int,
        on_end: Callable[[Offer], None],
        on_arrival: Callable[[int, float], None] = lambda num_bytes, seconds: None,
    ):
        """Hold nothing yet.

        Args:
          epoch: of the engine; who names another one is refused.
          lease_s: how long an offer lives without a pull.
          max_bytes: that all offers together may come to hold.
          on_end: told of each offer that ends before all its pages were there.
          on_arrival: told how many bytes had not been sent when the last page was published, and
            how many seconds later the reader had them all.
        """
        self.epoch, self.lease_s, self.max_bytes = epoch, lease_s, max_bytes
        self.counts = OfferCounts()
        self._on_end, self._on_arrival = on_end, on_arrival
        self._open: dict[str, Offer] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()  # id to how
        self._changed = threading.Condition()
        self._reaper: threading.Thread | None = None
        self._closed = False

    def open(
        self,
        request_id: str,
        *,
        first_page: int,
        num_pages: int,
        page_bytes: int,
        deadline_s: float,
    ) -> Offer:
        """Reserve room for the pages first_page..num_pages of a prompt.

        Raises:
          ResourceExhausted: other offers leave too little of the budget.
          Unavailable: the engine is closed.
        """
        num_bytes = (num_pages - first_page) * page_bytes
        with self._changed:
            if self._closed:
                raise Unavailable("RTPJ-4307 OFFER_FAILED: the engine is closed. Ask another one.")
            if self.counts.bytes + num_bytes > self.max_bytes:
                self.counts.refused += 1
                raise self._full(num_bytes)
            lease_until_s = time.monotonic() + self.lease_s
            offer = Offer(
                secrets.token_hex(12),
                request_id,
                first_page,
                num_pages,
                num_bytes,
                deadline_s,
                lease_until_s,
            )
            self._open[offer.id] = offer
            self.counts.opened += 1
            self.counts.open += 1
            self.counts.bytes += num_bytes
            if self._reaper is None:
                self._reaper = threading.Thread(target=self._reap, name="rtp-leases", daemon=True)
                self._reaper.start()
            self._changed.notify()
        return offer

    def publish(self, offer: Offer, at: int, record: PageRecord) -> None:
        """Add page `at`; if the offer has ended meanwhile, the page is wanted no more."""
        with self._changed:
            if offer.id not in self._open or at in offer.pages:
                return
            assert offer.first_page <= at < offer.num_pages, f"page {at} of {offer.num_pages}"
            offer.pages[at] = record
            self.counts.published += 1
            if offer.complete:
                offer.complete_s = time.monotonic()
                offer.num_behind = offer.num_pages - max(offer.num_taken, offer.first_page)
            watchers = list(offer.watchers)
        _wake(watchers)

    def fail(self, offer: Offer, reason: str) -> None:
        """Say that no page follows; those that are there may still be pulled."""
        with self._changed:
            if offer.complete:
                return
            offer.failure = reason
            watchers = list(offer.watchers)
        _wake(watchers)

    def check_epoch(self, epoch: str) -> None:
        """Refuse whoever means an earlier life of this engine.

        Raises:
          FailedPrecondition: the epoch is another one.
        """
        if epoch != self.epoch:
            raise FailedPrecondition(
                f"RTPJ-4303 EPOCH_DIFFERS: epoch {epoch[:64]!r} was asked for, this engine's is"
                f" {self.epoch!r}: it was restarted, and what it held is gone. Ask again.",
                field="epoch",
            )

    def find(self, offer_id: str, epoch: str) -> Offer:
        """Return an open offer.

        Raises:
          FailedPrecondition: it is an offer of an earlier life of this engine.
          NotFound: there is no such offer any more.
        """
        with self._changed:
            return self._find(offer_id, epoch)

    def take(self, offer_id: str, epoch: str, at: int, most: int) -> list[PageRecord]:
        """Return at most `most` pages from `at` on, as far as they are there; renews the lease.

        Raises:
          FailedPrecondition, NotFound: as `find`.
          InvalidArgument: the offer never had that page.
          Unavailable: page `at` will not come.
        """
        with self._changed:
            offer = self._find(offer_id, epoch)
            if not offer.first_page <= at <= offer.num_pages:
                raise InvalidArgument(
                    f"RTPJ-4306 PAGE_NOT_OFFERED: first_page={at} is not one of the pages"
                    f" {offer.first_page} to {offer.num_pages - 1} of offer {offer.id}.",
                    field="first_page",
                )
            offer.lease_until_s = time.monotonic() + self.lease_s
            found = []
            while len(found) < most and (record := offer.pages.get(at + len(found))) is not None:
                found.append(record)
            offer.num_taken = max(offer.num_taken, at + len(found))
            if not found and offer.failure is not None and at < offer.num_pages:
                raise Unavailable(
                    f"RTPJ-4307 OFFER_FAILED: page {at} of offer {offer.id} will not come:"
                    f" {offer.failure} Ask another worker, or compute it."
                )
            return found

    def extend(self, offer_id: str, epoch: str) -> float:
        """Renew a lease, and return its length in seconds; errors as `find`."""
        with self._changed:
            self._find(offer_id, epoch).lease_until_s = time.monotonic() + self.lease_s
        return self.lease_s

    def ack(self, offer_id: str, epoch: str) -> None:
        """End an offer whose pages have arrived; one that has ended already stays so."""
        offer = self._end_known(offer_id, epoch, "acknowledged")
        if offer is not None and offer.num_behind:
            page_bytes = offer.num_bytes // (offer.num_pages - offer.first_page)
            seconds = time.monotonic() - offer.complete_s
            self._on_arrival(offer.num_behind * page_bytes, seconds)

    def release(self, offer_id: str, epoch: str) -> None:
        """End an offer that nobody wants any more; one that has ended already stays so."""
        self._end_known(offer_id, epoch, "released")

    @contextmanager
    def watching(self, offer: Offer, wake: Callable[[], None]) -> Iterator[None]:
        """Have `wake` called, from any thread, whenever something about an offer changes."""
        with self._changed:
            offer.watchers.add(wake)
        try:
            yield
        finally:
            with self._changed:
                offer.watchers.discard(wake)

    def close(self) -> None:
        """End all offers and the thread; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            left, reaper = list(self._open), self._reaper
        for offer_id in left:
            self._end(offer_id, "closed with its engine")
        if reaper is not None:
            reaper.join()

    def _find(self, offer_id: str, epoch: str) -> Offer:
        self.check_epoch(epoch)
        if (offer := self._open.get(offer_id)) is not None:
            return offer
        how = self._ended.get(offer_id, "not made by this engine, or ended long ago")
        raise NotFound(
            f"RTPJ-4304 OFFER_ENDED: offer {offer_id[:64]!r} is {how} (a lease is"
            f" {self.lease_s:g} s). Ask again, or compute the pages.",
            field="offer_id",
        )

    def _full(self, num_bytes: int) -> ResourceExhausted:
        return ResourceExhausted(
            f"RTPJ-4305 OFFERS_FULL: the pages need {num_bytes} bytes, {self.counts.open} offers"
            f" hold {self.counts.bytes} of {self.max_bytes}. Ask another worker, retry later, or"
            " raise transfer_bytes.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _end_known(self, offer_id: str, epoch: str, how: str) -> Offer | None:
        with self._changed:
            if epoch == self.epoch and offer_id in self._ended:
                return None
            self._find(offer_id, epoch)
        return self._end(offer_id, how)

    def _end(self, offer_id: str, how: str) -> Offer | None:
        """Drop an offer, if it is still there, and return it."""
        with self._changed:
            offer = self._open.pop(offer_id, None)
            if offer is None:
                return None
            counts = self.counts
            counts.open -= 1
            counts.bytes -= offer.num_bytes
            counts.acked += how == "acknowledged"
            counts.released += how == "released"
            counts.expired += how in _TIMES_UP
            self._ended[offer_id] = how
            while len(self._ended) > NUM_REMEMBERED:
                self._ended.popitem(last=False)
            unfinished, watchers = not offer.complete, list(offer.watchers)
            offer.pages = {}
        _wake(watchers)
        if unfinished:
            self._on_end(offer)
        return offer

    def _reap(self) -> None:
        """End what nobody asks for any more; the body of the thread."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now_s = time.monotonic()
                ends = {
                    offer.id: min(offer.lease_until_s, offer.deadline_s)
                    for offer in self._open.values()
                }
                late = [offer_id for offer_id, end_s in ends.items() if end_s <= now_s]
                if not late:
                    self._changed.wait(min(ends.values()) - now_s if ends else None)
                    continue
                how = {
                    offer_id: _TIMES_UP[self._open[offer_id].deadline_s <= now_s]
                    for offer_id in late
                }
            for offer_id in late:
                self._end(offer_id, how[offer_id])


_TIMES_UP = ("past its lease", "past its deadline")


def _wake(watchers: list[Callable[[], None]]) -> None:
    for wake in watchers:
        wake()
