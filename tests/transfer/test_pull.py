"""Fetching pages: every page that is handed on is the right one, whatever peers and networks do."""

import dataclasses
import threading
import time

import grpc
import pytest

from rtp_jax.page_record import record_of
from rtp_jax.transfer.offers import Offer, PrefillAsk
from rtp_jax.transfer.pull import Pull
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb
from rtp_jax.wire.kv_pb2_grpc import KvTransferStub
from tests.fault_proxy import Fault, FaultProxy
from tests.transfer.served import (
    LAYOUT,
    chain_of,
    pulled,
    record_at,
    refusal,
    until,
    wanted,
)

NOBODY = "127.0.0.1:1"  # nothing listens there


@pytest.mark.parametrize("frame_bytes", [1 << 20, 1500, 100])  # many pages, one, a piece of one
def test_all_pages_come_in_order_and_the_offer_is_over(peers, start, frame_bytes):
    server = start(frame_bytes=frame_bytes)
    result = pulled(peers, wanted(7), server.address)
    assert (result.num_pages, result.failures) == (7, [])
    assert result.num_bytes == 7 * LAYOUT.page_bytes
    assert until(lambda: server.prefiller.offers.counts.acked == 1)
    assert server.prefiller.aborted == []


def test_pages_come_while_others_are_still_computed(peers, start):
    server = start(gap_s=0.03)
    result = pulled(peers, wanted(10), server.address, wait_s=0.1)  # which takes several pulls
    assert result.num_pages == 10
    assert result.first_page_s < result.total_s / 3
    assert server.metrics.rpcs["Pull", "OK"] > 1


def test_only_what_is_missing_is_asked_for(peers, start):
    server = start()
    assert pulled(peers, wanted(6, first_page=4), server.address).num_pages == 2
    assert server.prefiller.asks[0].first_page == 4


def test_who_is_not_there_is_passed_over_and_then_left_alone(peers, start):
    server = start()
    first = pulled(peers, wanted(3), NOBODY, server.address)
    second = pulled(peers, wanted(3), NOBODY, server.address)
    assert first.num_pages == second.num_pages == 3
    assert "UNAVAILABLE" in first.failures[0]
    assert "left alone" in second.failures[0]


def test_the_next_one_is_asked_for_the_rest(peers, start):
    def three_pages(prefiller, offer, chain) -> None:
        for at in range(3):
            prefiller.offers.publish(offer, at, record_at(chain, at))
        prefiller.offers.fail(offer, "It was aborted.")

    first, second = start(script=three_pages), start()
    result = pulled(peers, wanted(8), first.address, second.address)
    assert result.num_pages == 8
    assert "RTPJ-4307 OFFER_FAILED" in result.failures[0]
    assert [ask.first_page for ask in second.prefiller.asks] == [3]


def test_another_layout_is_refused_at_the_handshake(peers, start):
    other = dataclasses.replace(LAYOUT, model_epoch="weights-2")
    server = start(layout=other)
    result = pulled(peers, wanted(3), server.address)
    assert result.num_pages == 0
    (failure,) = result.failures
    assert failure.startswith(f"{server.address}: FAILED_PRECONDITION: RTPJ-4302 KV_LAYOUT_DIFFERS")
    assert LAYOUT.fingerprint.hex() in failure
    assert other.fingerprint.hex() in failure
    assert "model_epoch 'weights-2' here and 'weights-1' there" in failure
    assert "KV_LAYOUT_DIFFERS" in pulled(peers, wanted(3), server.address).failures[0]
    assert until(lambda: {name for name, _ in server.metrics.rpcs} == {"Hello"})


def test_whoever_skips_the_handshake_is_refused_too(start):
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        offer = pb.OfferRequest(token_ids=range(8), deadline_s=1.0, fingerprint=b"another")
        stub = KvTransferStub(channel)
        code, words = refusal(lambda: stub.Offer(offer, timeout=5))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert LAYOUT.fingerprint.hex() in words
        assert b"another".hex() in words
        fine = {"token_ids": range(8), "fingerprint": LAYOUT.fingerprint}
        for seconds in (0.0, -1.0, float("nan"), float("inf")):
            offer = pb.OfferRequest(deadline_s=seconds, **fine)
            code, words = refusal(
                lambda offer=offer: KvTransferStub(channel).Offer(offer, timeout=5)
            )
            assert (code, words[:9]) == (grpc.StatusCode.INVALID_ARGUMENT, "RTPJ-4308")
    assert server.prefiller.asks == []


@pytest.mark.parametrize("wrong", ["bytes", "order", "prompt", "size"])
def test_a_page_that_is_not_the_right_one_goes_no_further(peers, start, wrong):
    def publish(prefiller, offer, chain) -> None:
        right = [record_at(chain, at) for at in range(3)]
        bad = {
            "bytes": dataclasses.replace(right[1], payload=bytes(LAYOUT.page_bytes)),
            "order": right[2],
            "prompt": record_at(chain_of(list(range(100, 113))), 1),
            "size": record_of(*(right[1].key, right[1].parent, right[1].packed), b"short"),
        }[wrong]
        for at, record in enumerate((right[0], bad, right[2])):
            prefiller.offers.publish(offer, at, record)

    liar, honest = start(script=publish), start()
    result = pulled(peers, wanted(3), liar.address, honest.address)
    assert result.num_pages == 3
    assert result.num_corrupt == 3  # and no fourth try
    assert until(lambda: liar.prefiller.offers.counts.released == 1)


def test_a_peer_that_was_restarted_is_greeted_again(peers, start):
    old = start(epoch="e-1")
    assert pulled(peers, wanted(2), old.address).num_pages == 2
    old.stop()
    new = start(epoch="e-2", port=old.port)
    assert pulled(peers, wanted(2, seed=1), new.address).num_pages == 2


def test_a_reader_who_comes_after_the_lease_gets_nothing(peers, start):
    server = start(lease_s=0.05)
    with grpc.insecure_channel(server.address) as channel:
        stub = KvTransferStub(channel)
        ask = pb.OfferRequest(
            token_ids=wanted(4).token_ids, deadline_s=9.0, fingerprint=LAYOUT.fingerprint
        )
        offer = stub.Offer(ask, timeout=5)
        assert (offer.num_pages, offer.lease_s) == (4, 0.05)
        time.sleep(0.5)
        pull = pb.PullRequest(offer_id=offer.offer_id, epoch=offer.epoch, wait_s=1.0)
        code, words = refusal(lambda: list(stub.Pull(pull, timeout=5)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "RTPJ-4304 OFFER_ENDED" in words
        extend = pb.OfferId(offer_id=offer.offer_id, epoch=offer.epoch)
        assert refusal(lambda: stub.Extend(extend, timeout=5))[0] is grpc.StatusCode.NOT_FOUND
    assert server.prefiller.offers.counts.expired == 1


def test_a_pull_ends_with_its_deadline(peers, start):
    server = start(gap_s=0.1)
    began = time.monotonic()
    result = pulled(peers, wanted(20, within_s=0.35), server.address)
    assert time.monotonic() - began < 0.8
    assert 0 < result.num_pages < 20


def test_a_pull_that_is_cancelled_ends_the_prefill(peers, start):
    server, stop = start(gap_s=0.05), Stop()
    pull = Pull(wanted(20), peers.at([server.address]), stop)
    records = pull.records()
    next(records)
    stop.set()
    began = time.monotonic()
    assert len(list(records)) < 5
    assert time.monotonic() - began < 0.6
    assert until(lambda: len(server.prefiller.aborted) == 1)
    assert pull.result.failures == []
    assert list(Pull(wanted(2), peers.at([server.address]), stop).records()) == []


def test_a_pull_that_waits_for_a_page_is_cancelled_at_once(peers, start):
    server, stop = start(script=lambda *_: None), Stop()  # no page ever comes
    timer = threading.Timer(0.05, stop.set)
    pull = Pull(wanted(20), peers.at([server.address]), stop, wait_s=5.0)
    timer.start()
    began = time.monotonic()
    assert list(pull.records()) == []
    assert time.monotonic() - began < 1.0
    assert until(lambda: len(server.prefiller.aborted) == 1)
    assert (pull.result.num_broken, pull.result.failures) == (0, [])


def test_a_pull_whose_reader_leaves_ends_the_prefill(peers, start):
    server = start(gap_s=0.05)
    records = Pull(wanted(20), peers.at([server.address]), Stop()).records()
    next(records)
    records.close()
    assert until(lambda: len(server.prefiller.aborted) == 1)


@pytest.mark.parametrize("method", ["Hello", "Offer"])
def test_a_peer_that_answers_without_a_message_is_passed_over(peers, start, method):
    first, second = start(), start()
    (peer,) = peers.at([first.address])
    setattr(peer.stub, method, lambda *_, **__: None)  # what grpc gives when a frame was damaged
    result = pulled(peers, wanted(3), first.address, second.address)
    assert result.num_pages == 3
    assert "it answered without a message" in result.failures[0]


@pytest.mark.parametrize("kind", ["reset", "truncate", "flip", "half_close", "delay"])
def test_a_bad_network_costs_time_and_never_a_wrong_page(peers, start, kind):
    server = start(frame_bytes=1500, lease_s=2.0)
    fault = Fault(kind=kind, every=5, after=4, delay_s=0.05)
    with FaultProxy(server.port, fault, seed=3) as proxy:
        results = [
            pulled(peers, wanted(12, seed=seed), proxy.address, server.address) for seed in range(8)
        ]
    assert proxy.applied[kind] > 0
    assert [result.num_pages for result in results] == [12] * 8


def test_a_connection_that_was_reset_goes_on_where_it_broke(peers, start):
    server = start(frame_bytes=1500, gap_s=0.02, lease_s=1.0)
    with FaultProxy(server.port) as proxy:

        def reset_once(page: int) -> None:
            if page == 5:
                proxy.reset_all()

        result = pulled(peers, wanted(15), proxy.address, on_page=reset_once)
    assert (result.num_pages, result.failures) == (15, [])
    assert result.num_broken == 1
    assert server.prefiller.offers.counts.opened == 1


def test_an_offer_that_breaks_on_its_way_is_asked_for_again(peers, start):
    server, asked = start(lease_s=60.0), []
    begin = server.prefiller.begin
    with FaultProxy(server.port) as proxy:

        def broken_once(ask: PrefillAsk) -> Offer:
            asked.append(ask)
            if len(asked) == 1:
                proxy.reset_all()
                time.sleep(0.2)  # until the server knows
            return begin(ask)

        server.prefiller.begin = broken_once
        result = pulled(peers, wanted(3), proxy.address)
        assert (result.num_pages, result.failures, len(asked)) == (3, [], 2)
        counts = server.prefiller.offers.counts
        assert until(lambda: (counts.acked, counts.released, counts.open) == (1, 1, 0))


def test_an_offer_whose_asker_has_gone_is_over_at_once(start):
    server = start(script=lambda *_: None, lease_s=60.0)
    begin, want = server.prefiller.begin, wanted(3)

    def slowly(ask: PrefillAsk) -> Offer:
        time.sleep(0.3)
        return begin(ask)

    server.prefiller.begin = slowly
    ask = pb.OfferRequest(token_ids=want.token_ids, deadline_s=60.0, fingerprint=LAYOUT.fingerprint)
    with grpc.insecure_channel(server.address) as channel:
        stub = KvTransferStub(channel)
        code, _ = refusal(lambda: stub.Offer(ask, timeout=0.1))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    counts = server.prefiller.offers.counts
    assert until(lambda: counts.released == 1)
    assert (counts.opened, counts.open) == (1, 0)
