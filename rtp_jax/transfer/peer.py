"""A worker that may have pages for us: its connection, its epoch, and whether it is worth asking.

A peer that failed is left alone for a while, longer each time; one that was silent, for half a
second.  It is the pair of us that is marked, not the worker.  Read next: `pull.py`.
"""

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from rtp_jax.errors import InvalidArgument
from rtp_jax.page_record import KvLayout
from rtp_jax.transfer.carrier import ByLink, Carrier, InFrames
from rtp_jax.transfer.direct_choice import greeting, out_of_reach
from rtp_jax.transfer.direct_take import Giver, Taking, Wish
from rtp_jax.transfer.layout import differences, layout_message, layout_of
from rtp_jax.wire import kv_pb2 as pb
from rtp_jax.wire.kv_pb2_grpc import KvTransferStub

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
END_S = 2.0
MAX_REASON_CHARS = 400
FIRST_REST_S, LONGEST_REST_S = 0.5, 30.0
MAX_PEERS = 64
MAX_MESSAGE_BYTES = 8 << 20  # a frame of 1 MiB, its token ids and keys
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # that connecting may take, a greeting of TLS included
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# What a stream that breaks on its way ends with; an answer of the peer itself is final.
ON_THE_WAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a length that was damaged
}
# What says nothing about whether the next request will fare better.
ABOUT_ONE_REQUEST = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND}
ABOUT_ONE_REQUEST |= {grpc.StatusCode.INVALID_ARGUMENT}
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerAccess:
    """How peers are reached: a bearer token, and TLS if there is a CA."""

    token: str | None = None
    tls: grpc.ChannelCredentials | None = None


class Peer:
    """One other worker; may be used from several threads."""

    def __init__(
        self,
        address: str,
        layout: KvLayout,
        access: PeerAccess,
        own_epoch: str,
        taking: Taking | None,
    ):
        self.address, self.layout, self._own_epoch = address, layout, own_epoch
        self._taking, self._said = taking, ""  # why not, as it was last said
        if access.tls is None:
            self._channel = grpc.insecure_channel(address, OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, access.tls, OPTIONS)
        self.stub = KvTransferStub(self._channel)
        bearer = ("authorization", f"Bearer {access.token}")
        self.metadata = (bearer,) if access.token else ()
        self._greeting = threading.Lock()  # held by who greets, while the others wait
        self._lock = threading.Lock()
        self._ending: set[grpc.Future] = set()
        self._hello: pb.HelloResponse | None = None
        self._rest_s, self._rests_until_s = FIRST_REST_S, 0.0
        self._differs: str | None = None

    def obstacle(self) -> str | None:
        """Say why it is not asked now, or return None."""
        left_s = self._rests_until_s - time.monotonic()
        if left_s <= 0:
            return None
        return self._differs or f"it failed, and is left alone for another {left_s:.1f} s"

    def hello(self, timeout_s: float) -> pb.HelloResponse:
        """Compare layouts, once in the life of the peer's engine.

        Raises:
          grpc.RpcError: it does not answer, or its layout differs.
        """
        until_s = time.monotonic() + timeout_s
        if not self._greeting.acquire(timeout=timeout_s):
            raise Silent("it has not answered the greeting of another request")
        try:  # one asks, the others wait for what it learns
            if (hello := self._hello) is None:
                if (reason := self.obstacle()) is not None:
                    raise Refused(reason)
                hello = self._greeted(max(until_s - time.monotonic(), 1e-3))
                with self._lock:
                    self._hello = hello
            return hello
        finally:
            self._greeting.release()

    def _greeted(self, timeout_s: float) -> pb.HelloResponse:
        request = pb.HelloRequest(layout=layout_message(self.layout))
        if self._taking is not None:
            request.direct.CopyFrom(greeting(self._taking.end))
        answer = self.ask(self.stub.Hello, request, timeout_s)
        try:
            differ = differences(self.layout, layout_of(answer.layout))
        except InvalidArgument as error:
            raise Refused(str(error)) from error
        if answer.epoch == self._own_epoch:
            raise Refused("it is this engine itself")
        if differ:
            raise Refused(f"RTPJ-4302 KV_LAYOUT_DIFFERS: {'; '.join(differ)}")
        self._say_transport(answer)
        return answer

    def _say_transport(self, answer: pb.HelloResponse) -> None:
        """Say, once for each answer, that pages come in frames although that was not wanted."""
        if self._taking is None:
            return
        if answer.HasField("direct"):
            why = out_of_reach(self._taking.end, self.address, answer.direct)
            if not why:
                return
            answer.ClearField("direct")
            answer.no_direct = why
        if self._said != (said := answer.no_direct or "it knows no other way"):
            self._said = said
            logger.warning("pages of %s come by gRPC: %s", self.address, said)

    def carrier(self, epoch: str, stop: Wish, fetched: list[int]) -> Carrier:
        """Choose how the bytes of a stream come; ids of what came directly go to `fetched`."""
        hello = self._hello
        if self._taking is None or hello is None or hello.epoch != epoch:
            return InFrames()
        giver = Giver(self.address, epoch, hello.direct.host)
        if not (hello.HasField("direct") and self._taking.may_ask(giver)):
            return InFrames()
        return ByLink(self._taking, giver, self.layout.page_bytes, stop, fetched)

    def ask(
        self, method: Callable[..., Answer | None], request: object, timeout_s: float
    ) -> Answer:
        """Call a method that answers with one message.

        Raises:
          grpc.RpcError: it failed, or ended well without a message, as a damaged frame lets it.
        """
        answer = method(request, timeout=timeout_s, metadata=self.metadata)
        if answer is None:
            raise Refused("it answered without a message")
        return answer

    def was_restarted(self, error: grpc.RpcError) -> bool:
        """Tell whether an error means that the peer has begun another life; forgets the old one."""
        if code_of(error) is not grpc.StatusCode.FAILED_PRECONDITION:
            return False
        restarted = "EPOCH_DIFFERS" in words_of(error)
        with self._lock:
            self._hello = None
        return restarted

    def may_pull_again(self, error: grpc.RpcError) -> bool:
        """Tell whether a stream broke on its way, and not because the peer has an answer."""
        return code_of(error) in ON_THE_WAY and "RTPJ-" not in words_of(error)

    def failed(self, error: grpc.RpcError, *, fatal: bool) -> str:
        """Note a failure, and say in words which; `fatal`: leave the peer alone for a while."""
        code = code_of(error)
        reason = f"{code.name}: {words_of(error)[:MAX_REASON_CHARS]}"
        if fatal and code not in ABOUT_ONE_REQUEST:
            with self._lock:
                if self.obstacle() is None:
                    self._leave_alone(error)
        return reason

    def _leave_alone(self, error: grpc.RpcError) -> None:
        self._hello = None  # it may come back as another engine
        words = words_of(error)
        self._differs = words if "KV_LAYOUT_DIFFERS" in words else None
        if code_of(error) is DEADLINE:  # for this one's patience; others have more
            self._rests_until_s = time.monotonic() + FIRST_REST_S
            return
        self._rests_until_s = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    def succeeded(self) -> None:
        """Note that it works."""
        self._rest_s = FIRST_REST_S

    def end(self, offer: pb.OfferResponse, fetched: Sequence[int] = (), *, done: bool) -> None:
        """Say that an offer is over, without waiting: its lease ends it if this does not arrive."""
        method = self.stub.Ack if done else self.stub.Release
        ended = pb.OfferId(offer_id=offer.offer_id, epoch=offer.epoch, fetched=fetched)
        with contextlib.suppress(ValueError):  # closed meanwhile
            call = method.future(ended, timeout=END_S, metadata=self.metadata)
            self._ending.add(call)  # grpc cancels a call that nobody holds
            call.add_done_callback(self._ending.discard)

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._channel.close()


class Refused(grpc.RpcError):
    """A peer that was not asked, or whose answer is of no use."""


class Silent(grpc.RpcError):
    """A peer that says nothing to others either."""


class Peers:
    """The peers that were asked lately, by address."""

    def __init__(
        self,
        layout: KvLayout,
        access: PeerAccess = PeerAccess(),
        own_epoch: str = "",
        taking: Taking | None = None,
    ):
        """Ask nobody yet; `taking` is how pages may come beside frames."""
        self._layout, self._access, self._own_epoch = layout, access, own_epoch
        self._taking = taking
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()

    def at(self, addresses: Sequence[str]) -> list[Peer]:
        """Return the peers at some addresses."""
        with self._lock:
            if self._closed:
                return []
            found = []
            for address in addresses:
                peer = self._peers.pop(address, None) or self._new(address)
                self._peers[address] = peer
                found.append(peer)
            while len(self._peers) > max(MAX_PEERS, len(addresses)):
                self._peers.popitem(last=False)[1].close()
            return found

    def _new(self, address: str) -> Peer:
        return Peer(address, self._layout, self._access, self._own_epoch, self._taking)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            for peer in self._peers.values():
                peer.close()
            self._peers.clear()


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """Return the status of a failed call."""
    if isinstance(error, Silent):
        return DEADLINE
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.FAILED_PRECONDITION


def words_of(error: grpc.RpcError) -> str:
    """Return the message of a failed call."""
    return error.details() or "" if isinstance(error, grpc.Call) else str(error)
