"""How do the pages of one prompt get here?  From the first peer that has them, or not at all.

    for each candidate:  Offer -> Pull, Pull, ... -> Ack | Release

A page is handed on only after its place, identity, size and digest were checked, each exactly once
and in order.  What has arrived stays: the next candidate is asked for the rest.  Nothing is raised:
pages that do not come are computed by whoever wanted them.

A peer is left as soon as nothing was heard of it for `stall_s`, whatever it was asked: a peer that
still computes answers a pull without pages in time.  No call outlasts the request's own deadline.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from rtp_jax.page_record import PageRecord
from rtp_jax.transfer.assembly import AskedPage, Assembly, Corrupt
from rtp_jax.transfer.direct import DirectFailed
from rtp_jax.transfer.peer import DEADLINE, Peer, code_of
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb

WAIT_S = 0.25  # that a pull may take before it is renewed; so a stopped reader loses its lease
STALL_S = 3.0  # for which a peer may say nothing, unless it is told otherwise
OFFER_TRIES, PAUSE_S = 3, 0.02  # of a call that breaks on its way
MAX_BROKEN = 3  # streams of one offer, one after another, without a page


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Which pages of a prompt are wanted: first_page and all behind it."""

    request_id: str
    token_ids: Sequence[int]  # of all pages
    cache_salt: str
    first_page: int
    pages: Sequence[AskedPage]  # from first_page on
    priority: int
    deadline_s: float  # time.monotonic(); when waiting for pages ends

    @property
    def num_pages(self) -> int:
        """Pages from page 0 on."""
        return self.first_page + len(self.pages)


@dataclass(slots=True)
class Pulled:
    """What came of it."""

    num_pages: int = 0  # that were handed on
    whole: bool = False  # these were all
    num_bytes: int = 0
    num_direct: int = 0  # of the pages: over the direct transport
    num_corrupt: int = 0
    num_broken: int = 0  # streams
    offered_s: float | None = None  # the last time that a peer took to make an offer
    first_page_s: float | None = None  # since the start
    total_s: float = 0.0
    failures: list[str] = field(default_factory=list)  # one for each candidate that failed


class _Broken(Exception):
    """A stream ended before its time; another pull may go on."""


class Pull:
    """Fetches the pages of one prompt."""

    def __init__(
        self,
        wanted: Ask,
        peers: Sequence[Peer],
        stop: Stop,
        *,
        wait_s: float = WAIT_S,
        stall_s: float = STALL_S,
    ):
        """Prepare to ask peers, best first, until `stop` is set.

        Args:
          wanted: which pages.
          peers: who may have them.
          stop: set when nobody wants them any more.
          wait_s: that a peer may take to answer a pull for which it has nothing yet.
          stall_s: for which a peer may say nothing, beyond that.
        """
        self.result = Pulled()
        self._wanted, self._peers, self._stop = wanted, peers, stop
        self._wait_s, self._stall_s = wait_s, stall_s
        self._fetched: list[int] = []  # ids that the peer may not know of yet
        self._began_s = self._heard_s = time.monotonic()

    def records(self) -> Iterator[PageRecord]:
        """Yield pages in order until all are here, nobody has them, or the time is up.

        Closing the iterator releases what is offered.
        """
        self._began_s = time.monotonic()
        try:
            for peer in self._peers:
                if self._complete or self._stop.is_set() or self._left_s() <= 0:
                    return
                reason = peer.obstacle()
                if reason is None:
                    yield from self._from(peer)
                else:
                    self._failed(peer, reason)
        finally:
            self.result.whole = self._complete
            self.result.total_s = time.monotonic() - self._began_s

    @property
    def _at(self) -> int:
        """The page that is next."""
        return self._wanted.first_page + self.result.num_pages

    @property
    def _complete(self) -> bool:
        return self.result.num_pages == len(self._wanted.pages)

    def _from(self, peer: Peer) -> Iterator[PageRecord]:
        """Yield the pages that one peer has."""
        offer: pb.OfferResponse | None = None
        self._hear()
        try:
            offer = self._offered(peer)
            self._check_offer(offer, peer)
            yield from self._pull_all(peer, offer)
        except grpc.RpcError as error:
            fatal = not self._stop.is_set() and self._left_s() > 0
            self._failed(peer, peer.failed(error, fatal=fatal))
        except (Corrupt, DirectFailed, _Broken) as error:
            self._failed(peer, str(error))
        except ValueError as error:  # grpc's word for a connection that has been closed here
            self._failed(peer, str(error))
        else:
            peer.succeeded()
        finally:
            if offer is not None:
                peer.end(offer, self._fetched, done=self._complete)
            self._fetched.clear()

    def _failed(self, peer: Peer, reason: str) -> None:
        self.result.failures.append(f"{peer.address}: {reason}")

    def _offered(self, peer: Peer) -> pb.OfferResponse:
        """Ask for the pages; again if the peer was restarted, or the call broke on its way.

        An offer that was made for the call that broke is released by the peer, or with its lease.
        """
        wanted, tries = self._wanted, OFFER_TRIES
        while True:
            hello = peer.hello(self._patience_s())
            self._hear()
            request = pb.OfferRequest(
                request_id=wanted.request_id,
                token_ids=wanted.token_ids,
                cache_salt=wanted.cache_salt,
                first_page=self._at,
                deadline_s=max(self._left_s(), 1e-3),
                fingerprint=peer.layout.fingerprint,
                epoch=hello.epoch,
                priority=wanted.priority,
            )
            began_s = time.monotonic()
            try:
                offer = peer.ask(peer.stub.Offer, request, self._patience_s())
            except grpc.RpcError as error:
                worth_it = peer.was_restarted(error) or peer.may_pull_again(error)
                tries -= 1
                if not (worth_it and tries) or self._stop.is_set():
                    raise
                time.sleep(PAUSE_S)  # the next one may still find the connection that broke
            else:
                self._hear()
                self.result.offered_s = self._heard_s - began_s
                return offer

    def _check_offer(self, offer: pb.OfferResponse, peer: Peer) -> None:
        if offer.fingerprint != peer.layout.fingerprint:
            raise _Broken("its offer has another layout")
        if offer.num_pages != self._wanted.num_pages:
            raise _Broken(f"it offers {offer.num_pages} of {self._wanted.num_pages} pages")

    def _pull_all(self, peer: Peer, offer: pb.OfferResponse) -> Iterator[PageRecord]:
        """Pull until every page is here; a broken stream is taken up where it broke."""
        broken = 0
        while not self._complete and not self._stop.is_set():
            before = self.result.num_pages
            try:
                yield from self._pull(peer, offer)
            except (grpc.RpcError, Corrupt, DirectFailed, _Broken) as error:
                if self._stop.is_set():
                    return
                if isinstance(error, Corrupt | DirectFailed):
                    self._hear()  # the peer has spoken, and is now asked again
                broken = 1 if self.result.num_pages > before else broken + 1
                self.result.num_broken += 1
                again = not isinstance(error, grpc.RpcError) or peer.may_pull_again(error)
                if broken >= MAX_BROKEN or not again or self._left_s() <= 0:
                    raise

    def _pull(self, peer: Peer, offer: pb.OfferResponse) -> Iterator[PageRecord]:
        """Yield what one stream brings."""
        left_s, before, began_s = self._left_s(), self._at, time.monotonic()
        heard_s = self._heard_s
        carrier = peer.carrier(offer.epoch, self._stop, self._fetched)
        request = pb.PullRequest(
            offer_id=offer.offer_id,
            epoch=offer.epoch,
            first_page=before,
            wait_s=max(min(self._wait_s, left_s), 1e-3),
            direct=carrier.direct,
            fetched=self._fetched,
        )
        timeout_s = self._patience_s(request.wait_s)
        assembly = Assembly(self._wanted.pages, before, self._wanted.first_page, peer.layout)
        call = peer.stub.Pull(request, timeout=timeout_s, metadata=peer.metadata)
        try:
            with self._stop.waking(call.cancel):  # or a cancel would wait for the next page
                for frame in call:
                    self._hear()
                    self._told(request)
                    payloads = carrier.payloads(frame, self._until_s())
                    for record in assembly.pages(frame, payloads):
                        self._count(record, direct=frame.direct != 0)
                        yield record
                    self._hear()  # from now on we listen again
                    if assembly.complete or self._stop.is_set():
                        return
        except Corrupt as error:
            self.result.num_corrupt += 1
            carrier.doubt(str(error))
            raise
        except grpc.RpcError as error:
            if code_of(error) is not DEADLINE or self._heard_s == heard_s:
                raise
            if self._at == before:
                raise _Broken("pieces of a page came, but not all of it in time") from error
        else:
            self._hear()
        finally:
            call.cancel()  # what is behind the last page that we want, or behind a bad one
        if self._at == before and time.monotonic() - began_s < request.wait_s / 2:
            raise _Broken("it ended a stream without a page and without waiting for one")

    def _told(self, request: pb.PullRequest) -> None:
        """Forget the ids that a request told the peer, now that it has answered."""
        del self._fetched[: len(request.fetched)], request.fetched[:]

    def _count(self, record: PageRecord, *, direct: bool) -> None:
        result = self.result
        result.num_direct += direct
        if result.first_page_s is None:
            result.first_page_s = time.monotonic() - self._began_s
        result.num_pages += 1
        result.num_bytes += len(record.payload)

    def _hear(self) -> None:
        """Note a sign of life, or that we begin to wait for one."""
        self._heard_s = time.monotonic()

    def _until_s(self, wait_s: float = 0.0) -> float:
        """Say until when a peer may say nothing if it may take `wait_s` to answer."""
        return min(self._heard_s + wait_s + self._stall_s, self._wanted.deadline_s)

    def _patience_s(self, wait_s: float = 0.0) -> float:
        """Say how much longer that is."""
        return max(self._until_s(wait_s) - time.monotonic(), 1e-3)

    def _left_s(self) -> float:
        return self._wanted.deadline_s - time.monotonic()
