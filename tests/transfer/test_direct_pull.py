"""Pages whose bytes come another way: the right ones, or they come in frames."""

import contextlib
import time

import grpc
import pytest

from rtp_jax.transfer import kv_service
from rtp_jax.transfer.carrier import ByLink
from rtp_jax.transfer.direct_choice import out_of_reach
from rtp_jax.transfer.direct_take import Giver
from rtp_jax.transfer.kv_service import KvService
from rtp_jax.transfer.peer import Peers
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb
from rtp_jax.wire.kv_pb2_grpc import KvTransferStub
from tests.transfer.direct_ends import FakeEnd, direct
from tests.transfer.served import (
    LAYOUT,
    FakePrefiller,
    KvServer,
    pulled,
    until,
    wanted,
)


@contextlib.contextmanager
def joined(*, giver_end: FakeEnd | None = None, **options):
    """Serve pages that can go both ways; yield the server, how it gives, and what asks it."""
    there = giver_end or FakeEnd()
    here = FakeEnd(reads=there.held)
    gives, takes = direct(there, **options), direct(here)
    peers = Peers(LAYOUT, taking=takes.taking)
    try:
        with KvServer(FakePrefiller(direct=gives)) as server:
            yield server, gives.giving, here, peers
            assert until(lambda: server.prefiller.offers.counts.open == 0)
    finally:
        here.free.set()
        peers.close()
        takes.close()
    assert there.closed
    assert here.closed


def test_all_pages_come_directly_and_nothing_waits_after_them():
    with joined() as (server, giving, _, peers):
        result = pulled(peers, wanted(70), server.address)
        assert (result.num_pages, result.num_direct, result.failures) == (70, 70, [])
        assert result.whole
        assert result.num_bytes == 70 * LAYOUT.page_bytes
        assert until(lambda: giving.counts.bytes == 0)
        assert giving.counts.fetched == giving.counts.given >= 2
        assert until(lambda: server.prefiller.offers.counts.acked == 1)


def test_pages_without_room_come_in_frames():
    with joined(max_bytes=3 * LAYOUT.page_bytes) as (server, giving, _, peers):
        result = pulled(peers, wanted(20), server.address)
        assert (result.num_pages, result.failures, result.num_broken) == (20, [], 0)
        assert result.num_direct < 20
        assert giving.counts.refused > 0


@pytest.mark.parametrize("fault", ["hang", "deaf", "fail", "damage"])
def test_what_does_not_come_directly_comes_in_frames(fault):
    with joined() as (server, giving, here, peers):
        setattr(here, fault, True)
        began = time.monotonic()
        result = pulled(peers, wanted(9), server.address, stall_s=0.3)
        assert time.monotonic() - began < 2
        assert (result.num_pages, result.num_direct, result.failures) == (9, 0, [])
        assert (result.num_broken, result.num_corrupt) == (1, fault == "damage")
        assert giving.counts.fetched == (fault == "damage")
        assert not peers._taking._links  # the next one is made anew
        again = pulled(peers, wanted(9, seed=1), server.address)  # it is not tried again
        assert (again.num_pages, again.num_direct, again.num_broken) == (9, 0, 0)


def test_only_who_brought_bad_bytes_directly_is_suspect():
    giver = Giver("127.0.0.1:50051", "life", "127.0.0.1")
    here = FakeEnd(reads={1: (bytes(LAYOUT.page_bytes), 0.0)})
    takes = direct(here)
    carrier = ByLink(takes.taking, giver, LAYOUT.page_bytes, Stop(), [])
    until_s = time.monotonic() + 5
    named = pb.PageFrame(pages=[pb.Page()], direct=1, direct_port=7)
    carrier.payloads(named, until_s)
    carrier.payloads(pb.PageFrame(pages=[pb.Page(payload=b"0")]), until_s)
    carrier.doubt("a digest of what was in a frame")
    assert takes.taking.may_ask(giver)
    assert len(takes.taking._links) == 1
    here.reads[1] = (bytes(LAYOUT.page_bytes), 0.0)
    carrier.payloads(named, until_s)
    carrier.doubt("a digest of what came directly")
    assert not takes.taking.may_ask(giver)
    assert not takes.taking._links
    takes.close()


def test_what_is_given_and_never_fetched_is_dropped():
    with joined(keep_s=0.2) as (server, giving, here, peers):
        here.hang = True
        pulled(peers, wanted(9), server.address, stall_s=0.1)
        assert until(lambda: giving.counts.unfetched == giving.counts.given > 0)
        assert giving.counts.bytes == 0


def test_what_arrived_is_said_again_when_the_call_that_said_it_was_lost():
    with joined() as (server, giving, _, peers), grpc.insecure_channel("127.0.0.1:1") as nobody:
        server.prefiller._gap_s = 0.1
        (peer,) = peers.at([server.address])
        there, lost = peer.stub.Pull, []

        def pull(request, **options):
            if not request.fetched or lost:
                return there(request, **options)
            lost.extend(request.fetched)
            return KvTransferStub(nobody).Pull(request, **options)

        peer.stub.Pull = pull
        result = pulled(peers, wanted(8), server.address, wait_s=0.15)
        assert lost
        assert (result.num_direct, result.num_broken, result.failures) == (8, 1, [])
        assert until(lambda: giving.counts.bytes == 0)
        assert giving.counts.fetched == giving.counts.given
        assert giving.counts.unfetched == 0


def test_pages_come_while_others_are_still_computed():
    with joined() as (server, _, _, peers):
        server.prefiller._gap_s = 0.1
        result = pulled(peers, wanted(8), server.address, wait_s=0.15)  # which takes several pulls
        assert result.num_direct == 8
        assert result.first_page_s < result.total_s - 0.3


@pytest.mark.parametrize("protocol", ["fake 1", "fake 2"])
def test_both_sides_say_once_why_pages_come_in_frames(protocol, caplog):
    with joined(giver_end=FakeEnd(protocol="fake 2")) as (server, _, here, peers):
        here.protocol = protocol
        for seed in range(2):
            result = pulled(peers, wanted(3, seed=seed), server.address)
            assert result.num_direct == (3 if protocol == "fake 2" else 0)
        said = [record.getMessage() for record in caplog.records]
    if protocol == "fake 2":
        assert said == []
    else:
        words = "'fake 2' here and 'fake 1' there"
        assert sorted(said) == [
            f"pages go by gRPC: {words}",
            f"pages of {server.address} come by gRPC: {words}",
        ]


def test_bytes_are_fetched_where_their_giver_says_and_not_where_it_serves():
    with joined(giver_end=FakeEnd(host="127.0.0.2")) as (server, _, here, peers):
        assert pulled(peers, wanted(3), server.address).num_direct == 3
        assert here.connected == [("127.0.0.2", 7)]


@pytest.mark.parametrize(
    ("giver_host", "taker_host"),
    [("10.0.0.3", "127.0.0.1"), ("127.0.0.1", "10.0.0.4"), ("127.0.0.1", "::1"), ("", "127.0.0.1")],
)
@pytest.mark.parametrize("giver_looks", [True, False])
def test_where_the_taker_would_fall_pages_come_in_frames(
    giver_host, taker_host, giver_looks, caplog, monkeypatch
):
    if not giver_looks:
        monkeypatch.setattr(kv_service, "disagreement", lambda own, theirs: "")
    with joined(giver_end=FakeEnd(host=giver_host)) as (server, _, here, peers):
        here.host = taker_host
        assert pulled(peers, wanted(3), server.address).num_direct == 0
        assert here.connected == []
        said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 + giver_looks
    assert all("which cannot be connected" in words for words in said)


def test_loopback_of_another_machine_is_not_ours():
    theirs = pb.DirectTransport(protocol="fake 1", host="127.0.0.1")
    assert out_of_reach(FakeEnd(), "127.0.0.3:50061", theirs) == ""
    assert out_of_reach(FakeEnd(), "localhost:50061", theirs) == ""
    for address in ("10.0.0.3:50061", "node-1:50061"):
        assert "only its own machine reaches" in out_of_reach(FakeEnd(), address, theirs)
    theirs.host = "10.0.0.3"
    assert out_of_reach(FakeEnd(host="10.0.0.4"), "node-1:50061", theirs) == ""


def test_a_worker_without_the_transport_gives_frames(caplog):
    taking = direct(FakeEnd()).taking
    peers = Peers(LAYOUT, taking=taking)
    with KvServer(FakePrefiller()) as server:
        assert pulled(peers, wanted(3), server.address).num_direct == 0
        assert "started with kv_transport=grpc" in caplog.text
        assert until(lambda: server.prefiller.offers.counts.open == 0)
        peers.close()


def test_who_asks_for_frames_gets_frames():
    with joined() as (server, giving, _, _):
        peers = Peers(LAYOUT)
        assert pulled(peers, wanted(3), server.address).num_direct == 0
        assert giving.counts.given == 0
        assert until(lambda: server.prefiller.offers.counts.open == 0)
        peers.close()


def test_a_prefiller_that_gives_what_it_did_not_announce_is_not_believed(monkeypatch):
    """A frame that names bytes for somebody who asked for frames brings nothing."""

    def named(self, at, records, last, giving):
        return real(self, at, records, last, self._prefiller().direct.giving)

    real = KvService._packed
    monkeypatch.setattr(KvService, "_packed", named)
    with joined() as (server, _, _, _):
        peers = Peers(LAYOUT)
        result = pulled(peers, wanted(3), server.address)
        assert (result.num_pages, result.num_corrupt) == (0, 3)
        assert until(lambda: server.prefiller.offers.counts.open == 0)
        peers.close()
