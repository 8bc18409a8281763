"""Expired requests are found when their time passes, and ended ones are not kept."""

from itertools import count

from rtp_jax.scheduler.expiry import SWEEP_AT, Expiry
from rtp_jax.scheduler.tracked import Group, group_of
from tests.scheduler.simulated import VOCAB, request

NUMBERS = count()


def group(added_s: float = 0.0, deadline_s: float | None = None) -> Group:
    one = request(f"r{next(NUMBERS)}", deadline_s=deadline_s)
    return group_of(
        one, added_s=added_s, numbers=NUMBERS, ageing_s=0.0, vocab_size=VOCAB, longest=100
    )


def test_deadlines_pass_in_their_own_order():
    expiry = Expiry(None)
    late, early = group(deadline_s=5.0), group(deadline_s=2.0)
    for each in (late, early, group()):
        expiry.add(each)
    assert list(expiry.expired(1.9)) == []
    assert [found for found, _ in expiry.expired(6.0)] == [early, late]
    assert list(expiry.expired(9.0)) == []


def test_started_requests_do_not_wait_too_long():
    expiry = Expiry(1.0)
    started, waiting = group(0.0), group(0.5)
    started.started = True
    expiry.add(started)
    expiry.add(waiting)
    assert list(expiry.expired(1.4)) == []
    ((found, error),) = expiry.expired(1.6)
    assert found is waiting
    assert "RTPJ-4006 QUEUE_TIMEOUT" in str(error)
    assert "waited 1.100 s" in str(error)


def test_ended_requests_are_not_kept_until_their_deadline():
    expiry = Expiry(100.0)
    for _ in range(50 * SWEEP_AT):
        ended = group(deadline_s=1e6)
        expiry.add(ended)
        ended.num_live = 0
    assert len(expiry._deadlines) <= SWEEP_AT
    assert len(expiry._queued) <= SWEEP_AT
