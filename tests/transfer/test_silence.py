"""For how long may a peer say nothing?  Whatever it is asked, for the stall time."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rtp_jax.transfer import kv_service
from rtp_jax.transfer import peer as peer_module
from rtp_jax.transfer.peer import FIRST_REST_S, PeerAccess, Refused, Silent
from tests.fault_proxy import FaultProxy
from tests.standstills import standstills
from tests.transfer.served import LAYOUT, pulled, wanted

STALL_S = 0.5  # what a sound peer keeps on a slow machine, too
PATIENCE = {"wait_s": 0.1, "stall_s": STALL_S}


@pytest.mark.parametrize("asked", ["Hello", "Offer", "Pull"])
def test_a_silent_peer_costs_the_stall_time_once_whatever_it_is_asked(peers, start, asked):
    watch = standstills()
    server, other = start(lease_s=2.0, gap_s=0.02), start(epoch="e-2")
    with FaultProxy(server.port) as proxy:

        def silent(at: int = 0) -> None:
            proxy.stopped = True

        if asked == "Hello":
            silent()
        else:  # it is known already
            assert pulled(peers, wanted(2), proxy.address).num_pages == 2
        if asked == "Offer":
            silent()
        on_page = {"on_page": silent} if asked == "Pull" else {}
        began_s = time.monotonic()
        both = (proxy.address, other.address)
        result = pulled(peers, wanted(9, seed=1), *both, **PATIENCE, **on_page)
        ended_s = time.monotonic()
        proxy.stopped = False
    assert ended_s - began_s > STALL_S * 0.9
    assert watch.spent_s(began_s, ended_s) < 4 * STALL_S
    assert result.whole
    assert "DEADLINE_EXCEEDED" in result.failures[0]


def test_a_peer_that_computes_for_long_is_not_silent(peers, start):
    server = start(gap_s=0.7)
    result = pulled(peers, wanted(2), server.address, **PATIENCE)
    assert result.whole
    assert (result.num_broken, result.failures) == (0, [])


def test_a_slow_reader_does_not_take_its_peer_for_silent(peers, start):
    server = start(frame_bytes=LAYOUT.page_bytes)
    result = pulled(
        peers, wanted(9), server.address, on_page=lambda at: time.sleep(0.15), **PATIENCE
    )
    assert result.whole
    assert (result.num_broken, result.failures) == (0, [])


def test_a_peer_whose_pages_come_in_slow_pieces_is_not_silent(peers, start, monkeypatch):
    quick = kv_service.frames

    def slow(*args, **options):
        for piece in quick(*args, **options):
            time.sleep(0.2)
            yield piece

    server = start(frame_bytes=LAYOUT.page_bytes // 8)
    with monkeypatch.context() as patched:
        patched.setattr(kv_service, "frames", slow)
        result = pulled(peers, wanted(1), server.address, **PATIENCE)
    assert (result.num_pages, result.num_broken) == (0, 3)
    assert "pieces of a page" in result.failures[0]
    assert pulled(peers, wanted(2), server.address).failures == []  # it is not left alone


def test_nobody_waits_for_the_greeting_of_another_for_longer_than_for_its_own(peers, start):
    watch, server = standstills(), start()
    with FaultProxy(server.port) as proxy, ThreadPoolExecutor() as pool:
        proxy.stopped = True
        patient = pool.submit(pulled, peers, wanted(2), proxy.address, stall_s=3.0)
        time.sleep(0.1)
        began_s = time.monotonic()
        result = pulled(peers, wanted(2, seed=1), proxy.address, **PATIENCE)
        assert watch.spent_s(began_s, time.monotonic()) < 3 * STALL_S
        assert not patient.done()
        assert "DEADLINE_EXCEEDED" in result.failures[0]
        assert "the greeting of another" in result.failures[0]
        assert patient.result(30).failures
        proxy.stopped = False


@pytest.mark.parametrize(("error", "rests"), [(Silent("?"), (1, 1, 1)), (Refused("no"), (1, 2, 4))])
def test_who_is_silent_rests_briefly_and_who_fails_longer_each_time(monkeypatch, error, rests):
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(peer_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    peer = peer_module.Peer("127.0.0.1:1", LAYOUT, PeerAccess(), "e", None)
    for times in rests:
        assert peer.obstacle() is None
        peer.failed(error, fatal=True)
        clock.now_s += times * FIRST_REST_S - 0.01
        assert "left alone" in (peer.obstacle() or "")
        clock.now_s += 0.02
    peer.close()
