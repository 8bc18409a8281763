"""When is asking a peer worth it?  When it is cheap as far as is known, and now and then anyway."""

import pytest

from rtp_jax.transfer.hop import HALVED_S, Hop


class Clock:
    """Time that a test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_whoever_knows_nothing_asks(clock):
    hop = Hop(None, clock)
    assert hop.is_worth_it(1, 1e-6)
    hop.observe(0.1)
    assert hop.is_worth_it(1, None)  # what computing takes is not known


def test_asking_must_be_cheaper_than_computing(clock):
    hop = Hop(None, clock)
    for _ in range(20):
        hop.observe(0.1)
    assert not hop.is_worth_it(1000, 0.19)
    assert hop.is_worth_it(1000, 0.21)


def test_one_slow_answer_counts_for_little(clock):
    hop = Hop(None, clock)
    for _ in range(20):
        hop.observe(0.01)
    hop.observe(0.11)
    assert hop.is_worth_it(1000, 0.061)
    assert not hop.is_worth_it(1000, 0.059)


def test_slow_answers_are_forgotten(clock):
    hop = Hop(None, clock)
    for _ in range(5):
        hop.observe(2.0)
    assert not hop.is_worth_it(1000, 0.3)
    clock.now_s += 5 * HALVED_S
    assert hop.is_worth_it(1000, 0.3)
    hop.observe(0.01)  # and what is learned then is what counts
    assert hop.is_worth_it(1000, 0.15)


def test_what_was_not_forgotten_is_learned_again(clock):
    hop = Hop(None, clock)
    for _ in range(5):
        hop.observe(0.01)
    clock.now_s += 10 * HALVED_S
    hop.observe(2.0)
    assert not hop.is_worth_it(1000, 3.9)


@pytest.mark.parametrize(("num_tokens", "expected"), [(15, False), (16, True)])
def test_a_given_number_of_tokens_is_what_counts(clock, num_tokens, expected):
    hop = Hop(16, clock)
    hop.observe(100.0)
    assert hop.is_worth_it(num_tokens, 1e-6) is expected
