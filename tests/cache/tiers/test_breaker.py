"""A breaker opens within three failures, waits longer each time, and closes at a success."""

from rtp_jax.cache.tiers.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, THRESHOLD, Breaker


def test_it_opens_within_three_failures_and_closes_at_a_success():
    breaker = Breaker()
    assert THRESHOLD <= 3
    for _ in range(THRESHOLD):
        assert breaker.allows(0.0)
        breaker.failure(0.0)
    assert not breaker.allows(0.0)
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.success()
    assert breaker.allows(0.0)
    assert breaker.num_openings == 1


def test_a_success_between_failures_keeps_it_closed():
    breaker = Breaker()
    for _ in range(10):
        breaker.failure(0.0)
        breaker.failure(0.0)
        breaker.success()
    assert breaker.allows(0.0)
    assert breaker.num_openings == 0


def test_it_waits_longer_each_time_and_not_for_ever():
    breaker, now_s, pauses = Breaker(), 0.0, []
    for _ in range(THRESHOLD - 1):
        breaker.failure(now_s)
    for _ in range(10):
        breaker.failure(now_s)  # the first try after each pause
        began_s = now_s
        while not breaker.allows(now_s):
            now_s += 0.25
        pauses.append(now_s - began_s)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_failures_that_come_late_do_not_prolong_the_pause():
    breaker = Breaker()
    for _ in range(THRESHOLD + 5):  # several were on their way
        breaker.failure(0.0)
    assert breaker.allows(FIRST_PAUSE_S)
    assert breaker.num_openings == 1
