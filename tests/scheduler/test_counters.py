"""When to come back to a full queue."""

import pytest

from rtp_jax.scheduler.counters import Pace


def test_without_history_it_is_a_guess():
    pace = Pace()
    assert pace.retry_after_s() == Pace.UNKNOWN_S
    pace.tick(3.0)
    assert pace.retry_after_s() == Pace.UNKNOWN_S


def test_it_follows_the_pace_of_admissions():
    pace = Pace()
    for i in range(100):
        pace.tick(i * 2.0)
    assert pace.retry_after_s() == pytest.approx(2.0)
    for i in range(100):
        pace.tick(200.0 + i * 0.5)
    assert pace.retry_after_s() == pytest.approx(0.5, rel=0.01)


def test_it_has_bounds():
    fast, slow = Pace(), Pace()
    for i in range(3):
        fast.tick(i * 1e-4)
        slow.tick(i * 1e4)
    assert fast.retry_after_s() == Pace.SHORTEST_S
    assert slow.retry_after_s() == Pace.LONGEST_S
