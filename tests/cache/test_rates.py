"""A cost is the line through what was measured."""

import pytest

from rtp_jax.cache.rates import LinearCost


def test_nothing_is_known_before_the_first_measurement():
    assert LinearCost().estimate(10) is None


def test_a_line_is_found():
    cost = LinearCost()
    for amount in (100, 900, 300, 500, 100, 700):
        cost.observe(amount, 0.02 + amount * 1e-4)
    assert cost.estimate(2000) == pytest.approx(0.22, rel=1e-6)
    assert cost.estimate(0) == pytest.approx(0.02, rel=1e-6)


def test_equal_amounts_have_no_latency_to_tell():
    cost = LinearCost()
    for _ in range(5):
        cost.observe(100, 0.5)
    assert cost.estimate(200) == pytest.approx(1.0)


def test_what_changes_is_followed():
    cost = LinearCost()
    for _ in range(20):
        cost.observe(100, 0.1)
    for _ in range(40):
        cost.observe(100, 0.5)
    assert cost.estimate(100) == pytest.approx(0.5, rel=0.05)


def test_a_line_never_falls_or_begins_below_zero():
    falling, steep = LinearCost(), LinearCost()
    for amount, seconds in ((100, 0.3), (200, 0.2), (300, 0.1)):
        falling.observe(amount, seconds)
    for amount, seconds in ((100, 0.0), (200, 0.5), (300, 1.0)):
        steep.observe(amount, seconds)
    assert falling.estimate(10) < falling.estimate(1000)
    assert steep.estimate(0) == 0


def test_an_estimate_that_loses_is_lowered():
    cost = LinearCost()
    for amount in (100, 200, 300):
        cost.observe(amount, amount * 1e-3)
    before = cost.estimate(100)
    for _ in range(35):
        cost.relax()
    assert cost.estimate(100) == pytest.approx(before * 0.98**35)
