"""A prefill worker without a model, behind the real door, and what others want from it."""

import asyncio
import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
from grpc import aio

from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.metrics import Metrics
from rtp_jax.page_record import GroupLayout, KvLayout, PageRecord, record_of
from rtp_jax.serving.door import Door
from rtp_jax.transfer.assembly import AskedPage
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.kv_service import FRAME_BYTES, KvService
from rtp_jax.transfer.offers import Offer, Offers, PrefillAsk
from rtp_jax.transfer.peer import Peers
from rtp_jax.transfer.pull import Ask, Pull, Pulled
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb

PAGE_SIZE = 4
LAYOUT = KvLayout(
    (GroupLayout(layers=2, kv_heads=2, head_dim=8, dtype="uint16", scales=False),),
    PAGE_SIZE,
    "weights-1",
    "bfloat16",
)


def chain_of(token_ids, *, cache_salt: str = "") -> PageChain:
    """Name the full pages of a prompt."""
    identity = PageIdentity(b"key", page_size=PAGE_SIZE, model_epoch="weights-1", kv_scheme="bf16")
    chain = PageChain(identity, identity.root(cache_salt=cache_salt))
    chain.extend(token_ids[: len(token_ids) // PAGE_SIZE * PAGE_SIZE])
    return chain


def record_at(chain: PageChain, at: int, layout: KvLayout = LAYOUT) -> PageRecord:
    """Make the page that every honest worker has at `at`: bytes that follow from its identity."""
    parent = chain.keys[at - 1] if at else chain.root
    rng = np.random.default_rng(list(chain.keys[at]))
    return record_of(chain.keys[at], parent, chain.packed[at], rng.bytes(layout.page_bytes))


def wanted(num_pages: int, *, first_page: int = 0, within_s: float = 20.0, seed: int = 0) -> Ask:
    """Ask for the pages of a random prompt."""
    ids = np.random.default_rng(seed).integers(0, 100, num_pages * PAGE_SIZE).tolist()
    chain = chain_of(ids)
    pages = [
        AskedPage(key, chain.keys[at - 1] if at else chain.root, chain.packed[at])
        for at, key in enumerate(chain.keys)
    ]
    return Ask(
        request_id=f"r-{seed}",
        token_ids=ids,
        cache_salt="",
        pages=pages[first_page:],
        first_page=first_page,
        priority=0,
        deadline_s=time.monotonic() + within_s,
    )


class FakePrefiller:
    """Publishes honest pages in a thread of its own: `gap_s` after one another, or by `script`."""

    def __init__(
        self,
        *,
        epoch: str = "e-1",
        lease_s: float = 10.0,
        max_bytes: int = 1 << 20,
        gap_s: float = 0.0,
        layout: KvLayout = LAYOUT,
        script: Callable[["FakePrefiller", Offer, PageChain], None] | None = None,
        direct: Direct | None = None,
    ):
        self.layout, self.role, self.direct = layout, "prefill", direct
        self.aborted: list[Offer] = []
        self.asks: list[PrefillAsk] = []
        self.offers = Offers(
            epoch=epoch, lease_s=lease_s, max_bytes=max_bytes, on_end=self.aborted.append
        )
        self._gap_s, self._script = gap_s, script or FakePrefiller.publish_all
        self._threads: list[threading.Thread] = []

    def begin(self, ask: PrefillAsk) -> Offer:
        """Open an offer and let the script publish into it."""
        self.asks.append(ask)
        chain = chain_of(list(ask.token_ids), cache_salt=ask.cache_salt)
        offer = self.offers.open(
            ask.request_id,
            first_page=ask.first_page,
            num_pages=len(ask.token_ids) // PAGE_SIZE,
            page_bytes=self.layout.page_bytes,
            deadline_s=ask.deadline_s,
        )
        thread = threading.Thread(target=self._script, args=(self, offer, chain), daemon=True)
        self._threads.append(thread)
        thread.start()
        return offer

    def publish_all(self, offer: Offer, chain: PageChain) -> None:
        """Publish every page."""
        for at in range(offer.first_page, offer.num_pages):
            time.sleep(self._gap_s)
            self.offers.publish(offer, at, record_at(chain, at, self.layout))

    def close(self) -> None:
        """End everything."""
        self.offers.close()
        if self.direct is not None:
            self.direct.close()
        for thread in self._threads:
            thread.join(10)


class KvServer:
    """Serves `KvTransfer` in a thread; use it as a context manager."""

    def __init__(self, prefiller: FakePrefiller, *, frame_bytes: int = FRAME_BYTES, port: int = 0):
        self.prefiller = prefiller
        self.metrics = Metrics()
        self._frame_bytes, self._wanted_port = frame_bytes, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "KvServer":
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving; may be called again."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.prefiller.close()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def _start(self) -> int:
        self._server = aio.server(options=(("grpc.so_reuseport", 0),))
        service = KvService(lambda: self.prefiller, self._frame_bytes)
        described = pb.DESCRIPTOR.services_by_name["KvTransfer"]
        door = Door(service, metrics=self.metrics, max_request_s=60.0, described=described)
        self._server.add_generic_rpc_handlers((door.handler(),))
        port = self._server.add_insecure_port(f"127.0.0.1:{self._wanted_port}")
        await self._server.start()
        return port


def until(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not (so := condition()) and time.monotonic() < end:
        time.sleep(0.002)
    return so


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return how a call is refused."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call was answered")


def pulled(
    peers: Peers,
    want: Ask,
    *addresses: str,
    on_page: Callable[[int], None] = lambda page: None,
    **patience,
) -> Pulled:
    """Pull, and check each page that is handed on against the one that every worker has.

    Args:
      peers: of whoever pulls.
      want: the pages.
      addresses: whom to ask.
      on_page: called with the number of each page that has come.
      patience: options of `Pull`.
    """
    chain, at = chain_of(want.token_ids), want.first_page
    pull = Pull(want, peers.at(addresses), Stop(), **patience)
    for record in pull.records():
        assert record == record_at(chain, at)
        on_page(at)
        at += 1
    assert pull.result.num_pages == at - want.first_page
    return pull.result
