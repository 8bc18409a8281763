"""Host memory keeps what fits its budget, children never longer than their parents."""

from rtp_jax.cache.tiers.host import OVERHEAD, HostTier
from tests.cache.tiers.pages import NEVER, read, record, wanted

SIZE = 100 + 2 + OVERHEAD


def test_what_was_written_is_read():
    tier = HostTier(10 * SIZE)
    for at in reversed(range(4)):  # as the device gives pages up
        assert tier.write(record(0, at)) == []
    assert tier.holds(wanted(0, 0, 9)) == 4
    assert read(tier, wanted(0, 1, 9)) == [record(0, at) for at in range(1, 4)]
    assert tier.usage() == (4, 4 * SIZE)
    assert tier.holds(wanted(1, 0, 2)) == 0


def test_a_full_tier_evicts_the_oldest_leaf():
    tier = HostTier(4 * SIZE)
    for chain in (0, 1):
        for at in reversed(range(2)):
            tier.write(record(chain, at))
    read(tier, wanted(0, 0, 2))  # used after chain 1
    assert tier.write(record(2, 0)) == [record(1, 1)]
    assert tier.write(record(2, 1)) == [record(1, 0)]
    assert [tier.holds(wanted(chain, 0, 2)) for chain in range(3)] == [2, 0, 2]


def test_a_record_larger_than_the_budget_goes_by():
    tier = HostTier(SIZE - 1)
    assert tier.write(record(0, 0)) == [record(0, 0)]
    assert tier.usage() == (0, 0)


def test_what_is_rejected_forgotten_or_cleared_is_gone():
    tier = HostTier(10 * SIZE)
    for at in range(4):
        tier.write(record(0, at))
    tier.reject(record(0, 3).key)
    tier.forget([record(0, 2).key, record(1, 2).key])
    assert tier.holds(wanted(0, 0, 4)) == 2
    assert not tier.keeps(record(0, 2).key)
    tier.clear()
    assert tier.usage() == (0, 0)
    assert tier.write(record(0, 0)) == []


def test_reading_goes_on_over_what_leaves_meanwhile():
    tier = HostTier(10 * SIZE)
    for at in range(3):
        tier.write(record(0, at))
    reading = tier.read(wanted(0, 0, 3), NEVER)
    assert next(reading) == record(0, 0)
    tier.clear()
    assert list(reading) == []
