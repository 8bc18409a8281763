"""The methods of `KvTransfer`: what a prefill worker answers to one that decodes.

Each method takes a message and returns one, or yields frames; errors are raised, and become
statuses at the door.  What is behind it is a `Prefiller`; see `offers.py` for how long pages live.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from rtp_jax.errors import InvalidArgument
from rtp_jax.page_record import KvLayout, PageRecord
from rtp_jax.transfer.direct_choice import Direct, disagreement, greeting
from rtp_jax.transfer.direct_give import Giving, pages_at_once
from rtp_jax.transfer.frames import frames
from rtp_jax.transfer.layout import differences, layout_differs, layout_message, layout_of
from rtp_jax.transfer.offers import Offer, Offers, PrefillAsk
from rtp_jax.wire import kv_pb2 as pb

logger = logging.getLogger(__name__)
# Of payload: small enough that other streams of a connection get their turn, and that the copies
# which gRPC makes of a message stay in a cache.
FRAME_BYTES = 1 << 20
MAX_WAIT_S = 30.0
MAX_DEADLINE_S = 24 * 3600.0
MAX_SAID = 16
Frame = pb.PageFrame | bytes  # bytes: spelled already


class Prefiller(Protocol):
    """An engine, as far as it computes pages for others."""

    @property
    def layout(self) -> KvLayout:
        """What lies where in its pages."""
        ...

    @property
    def role(self) -> str:
        """What it does at present."""
        ...

    @property
    def offers(self) -> Offers:
        """What it holds for others."""
        ...

    @property
    def direct(self) -> Direct | None:
        """How bytes of pages may go beside frames."""
        ...

    def begin(self, ask: PrefillAsk) -> Offer:
        """Admit a prefill whose pages are published into an offer, or raise."""
        ...


class Call(Protocol):
    """One call, as its door describes it."""

    @property
    def deadline_s(self) -> float:
        """When it must have ended: time.monotonic()."""
        ...


class KvService:
    """Serves the pages of one engine."""

    def __init__(self, prefiller: Callable[[], Prefiller], frame_bytes: int = FRAME_BYTES):
        """Serve what `prefiller` returns; it may raise while there is no engine yet."""
        self._prefiller, self._frame_bytes = prefiller, frame_bytes
        self._said: set[str] = set()  # why pages go in frames although somebody asked for more

    async def Hello(self, request: pb.HelloRequest, call: Call) -> pb.HelloResponse:
        """Compare layouts; who has none is told this engine's."""
        own = self._prefiller()
        theirs = layout_of(request.layout)
        if request.HasField("layout") and theirs != own.layout:
            raise layout_differs(own.layout, theirs.fingerprint, differences(own.layout, theirs))
        answer = pb.HelloResponse(
            layout=layout_message(own.layout), epoch=own.offers.epoch, role=own.role
        )
        if request.HasField("direct"):
            answer.no_direct = disagreement(own.direct, request.direct)
            self._say(answer.no_direct)
            if own.direct is not None and not answer.no_direct:
                answer.direct.CopyFrom(greeting(own.direct.end))
        return answer

    async def Offer(self, request: pb.OfferRequest, call: Call) -> pb.OfferResponse:
        """Begin to prefill."""
        own = self._prefiller()
        if request.fingerprint != own.layout.fingerprint:
            raise layout_differs(own.layout, request.fingerprint, [])
        if request.epoch:
            own.offers.check_epoch(request.epoch)
        most, more = divmod(len(request.token_ids), own.layout.page_size)
        if more or request.first_page >= most:
            raise InvalidArgument(
                f"RTPJ-4306 PAGE_NOT_OFFERED: first_page={request.first_page} is not one of the"
                f" {most} pages of {len(request.token_ids)} tokens, or these are not whole pages"
                f" of {own.layout.page_size}. Send the tokens of all pages up to the last one that"
                " is wanted.",
                field="first_page",
            )
        left_s = _seconds("deadline_s", request.deadline_s)
        ask = PrefillAsk(
            request_id=request.request_id,
            token_ids=request.token_ids,
            cache_salt=request.cache_salt,
            first_page=request.first_page,
            priority=request.priority,
            deadline_s=time.monotonic() + min(left_s, MAX_DEADLINE_S),
        )
        offer = await _begun(own, ask)
        return pb.OfferResponse(
            offer_id=offer.id,
            epoch=own.offers.epoch,
            fingerprint=own.layout.fingerprint,
            num_pages=offer.num_pages,
            lease_s=own.offers.lease_s,
        )

    async def Pull(self, request: pb.PullRequest, call: Call) -> AsyncIterator[Frame]:
        """Yield pages as they come, until the last one or the end of the caller's patience."""
        own = self._prefiller()
        offers, size = own.offers, own.layout.page_bytes
        wait_s = min(_seconds("wait_s", request.wait_s), MAX_WAIT_S)
        until_s = min(time.monotonic() + wait_s, call.deadline_s)
        offer, at = offers.find(request.offer_id, request.epoch), request.first_page
        giving = _giving(own, request.fetched)  # said also by who asks for frames from now on
        giving = giving if request.direct else None
        most = pages_at_once(size) if giving else max(self._frame_bytes // size, 1)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the call with it
                loop.call_soon_threadsafe(changed.set)

        with offers.watching(offer, wake):
            while True:
                changed.clear()
                records = offers.take(request.offer_id, request.epoch, at, most)
                last = at + len(records) == offer.num_pages
                for frame in await self._packed(at, records, last, giving):
                    yield frame
                at += len(records)
                left_s = until_s - time.monotonic()
                if at == offer.num_pages or left_s <= 0:
                    return
                if not records:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), left_s)

    async def Extend(self, request: pb.OfferId, call: Call) -> pb.ExtendResponse:
        """Renew a lease."""
        offers = self._prefiller().offers
        return pb.ExtendResponse(lease_s=offers.extend(request.offer_id, request.epoch))

    async def Ack(self, request: pb.OfferId, call: Call) -> pb.EndResponse:
        """Drop pages that have arrived."""
        own = self._prefiller()
        _giving(own, request.fetched)
        own.offers.ack(request.offer_id, request.epoch)
        return pb.EndResponse()

    async def Release(self, request: pb.OfferId, call: Call) -> pb.EndResponse:
        """Drop pages that nobody wants, and the prefill that makes them."""
        own = self._prefiller()
        _giving(own, request.fetched)
        own.offers.release(request.offer_id, request.epoch)
        return pb.EndResponse()

    async def _packed(
        self, at: int, records: Sequence[PageRecord], last: bool, giving: Giving | None
    ) -> Iterable[Frame]:
        """Spell pages as frames: one that names them, if their bytes may wait elsewhere."""
        if giving is not None and records:
            named = await asyncio.to_thread(giving.frame, at, records)
            if named is not None:
                named.last = last
                return [named]
        return frames(at, records, self._frame_bytes, last=last)

    def _say(self, reason: str) -> None:
        """Say once that pages go in frames to somebody who asked for another way."""
        if reason and reason not in self._said and len(self._said) < MAX_SAID:
            self._said.add(reason)
            logger.warning("pages go by gRPC: %s", reason)


async def _begun(own: Prefiller, ask: PrefillAsk) -> Offer:
    """Begin to prefill; an offer whose asker has gone meanwhile is released at once."""
    beginning = asyncio.ensure_future(asyncio.to_thread(own.begin, ask))

    def unwanted(begun: asyncio.Future[Offer]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            own.offers.release(begun.result().id, own.offers.epoch)

    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(unwanted)
        raise


def _giving(own: Prefiller, fetched: Sequence[int]) -> Giving | None:
    """Return what gives bytes directly, after telling it what has arrived."""
    if own.direct is None:
        return None
    own.direct.giving.fetched(fetched)
    return own.direct.giving


def _seconds(field: str, value: float) -> float:
    """Accept a positive, finite number of seconds."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgument(
            f"RTPJ-4308 SECONDS_INVALID: {field}={value} is no time to wait. Send what is left of"
            " the request's own time, in seconds.",
            field=field,
        )
    return value
