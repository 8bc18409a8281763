"""Nobody waits for a pull longer than he wants to; what is stuck is counted and bounded."""

import threading
import time

import pytest

from rtp_jax.transfer import direct_take
from rtp_jax.transfer.direct import DirectFailed
from rtp_jax.transfer.direct_take import Giver, Taking
from tests.transfer.direct_ends import FakeEnd
from tests.transfer.served import until

GIVER = Giver("127.0.0.1:50051", "life-1", "127.0.0.1", 7)
REBORN = Giver("127.0.0.1:50051", "life-2", "127.0.0.1", 8)
BYTES = b"0123456789"
NEVER = threading.Event()


@pytest.fixture
def end():
    made = FakeEnd(reads=dict.fromkeys(range(1, 9), (BYTES, 0.0)))
    yield made
    made.free.set()


@pytest.fixture
def taking(end):
    made = Taking(end, max_stuck=2)
    yield made
    end.free.set()
    made.close()


def take(taking: Taking, number: int = 1, *, giver: Giver = GIVER, within_s: float = 5.0) -> bytes:
    until_s = time.monotonic() + within_s
    return bytes(taking.take(giver, number, len(BYTES), until_s, NEVER))


def late(taking: Taking, number: int = 1, *, giver: Giver = GIVER) -> float:
    """Take what does not come in time, and return how long that took."""
    began = time.monotonic()
    with pytest.raises(DirectFailed, match="10 bytes did not come in time"):
        take(taking, number, giver=giver, within_s=0.1)
    return time.monotonic() - began


def test_what_is_there_comes_over_one_link(taking, end):
    assert [take(taking, number) for number in (1, 2, 3)] == [BYTES] * 3
    assert len(end.links) == 1
    assert taking.may_ask(GIVER)


def test_a_pull_that_fails_makes_its_giver_suspect_until_its_next_life(taking, end):
    with pytest.raises(DirectFailed, match="0 bytes are there of 10"):
        take(taking, 99)
    assert not taking.may_ask(GIVER)
    assert taking.may_ask(REBORN)
    assert take(taking, giver=REBORN) == BYTES
    assert len(end.links) == 2
    assert taking.counts.failed == 1


def test_suspicion_ends(taking, end, monkeypatch):
    monkeypatch.setattr(direct_take, "SUSPECT_S", 0.1)
    with pytest.raises(DirectFailed):
        take(taking, 99)
    assert not taking.may_ask(GIVER)
    assert until(lambda: taking.may_ask(GIVER))
    assert take(taking) == BYTES


def test_nobody_to_connect_to(taking, end):
    end.fail = True
    with pytest.raises(DirectFailed, match=r"nobody at 127.0.0.1, port 7"):
        take(taking)
    assert not taking.may_ask(GIVER)


def test_a_late_pull_is_ended_with_its_link(taking, end):
    end.hang = True
    assert late(taking) < 1
    assert until(end.links[0].ended.is_set)
    time.sleep(2 * direct_take.GRACE_S)
    assert (taking.counts.failed, taking.counts.stuck, taking.retires) == (1, 0, None)


def test_what_cannot_be_ended_is_stuck_until_it_ends_by_itself(taking, end):
    end.deaf = True
    assert late(taking) < 1
    assert not taking.may_ask(GIVER)
    assert until(lambda: taking.counts.stuck == 1)
    assert taking.counts.stuck_bytes == len(BYTES)
    assert taking.may_ask(REBORN)
    end.free.set()
    assert until(lambda: taking.counts.stuck == 0)
    assert taking.counts.stuck_bytes == 0
    assert not taking.may_ask(GIVER)  # it never comes back in this life
    assert taking.retires is None


def test_too_much_that_is_stuck_retires_the_process(taking, end):
    end.deaf = True
    late(taking)
    late(taking, 2, giver=REBORN)
    assert until(lambda: taking.retires is not None)
    assert taking.retires.startswith("RTPJ-4315 DIRECT_PULLS_STUCK: 2 pulls")
    assert "hold 20 bytes" in taking.retires
    assert not taking.may_ask(Giver("127.0.0.1:1", "other", "127.0.0.1", 9))  # nobody, from now on
    end.free.set()
    assert until(lambda: taking.counts.stuck == 0)
    assert taking.retires  # decided once


def test_what_is_stuck_at_the_end_is_reported(taking, end):
    end.deaf = True
    late(taking)
    assert taking.retires is None  # one is bearable
    taking.close()
    assert "1 pulls" in taking.retires
    assert not taking.may_ask(REBORN)


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_what_nobody_waits_for_is_ended_at_the_end(taking, end, fault):
    setattr(end, fault, True)
    stop = threading.Event()
    stop.set()
    with pytest.raises(DirectFailed, match="nobody wants"):
        taking.take(GIVER, 1, len(BYTES), time.monotonic() + 60, stop)
    began = time.monotonic()
    taking.close()
    assert time.monotonic() - began < 5
    assert end.links[0].ended.wait(5)
    assert taking.counts.stuck == (fault == "deaf")
    assert (taking.retires is not None) == (fault == "deaf")


def test_who_wants_nothing_any_more_does_not_wait(taking, end):
    end.hang, stop = True, threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(DirectFailed, match="nobody wants them any more"):
        taking.take(GIVER, 1, len(BYTES), began + 0.6, stop)
    assert time.monotonic() - began < 0.4
    assert taking.may_ask(GIVER)  # nothing was wrong with it yet
    assert until(lambda: taking.counts.failed == 1)  # the watchdog found it late
    assert time.monotonic() - began >= 0.6
    assert until(end.links[0].ended.is_set)
    assert end.links[0].ended.is_set()


def test_a_pull_that_is_left_and_comes_is_no_failure(taking, end):
    end.deaf, stop = True, threading.Event()
    stop.set()
    with pytest.raises(DirectFailed, match="nobody wants"):
        taking.take(GIVER, 1, len(BYTES), time.monotonic() + 5, stop)
    end.free.set()
    time.sleep(0.2)
    assert (taking.counts.failed, taking.counts.stuck) == (0, 0)
