"""What is given is held until it is fetched, or until its time is over; never more than allowed."""

import pytest

from rtp_jax.transfer.direct import DirectFailed
from rtp_jax.transfer.direct_give import ARRAY_BYTES, MAX_PAGES, Giving, pages_at_once
from tests.transfer.direct_ends import FakeEnd
from tests.transfer.served import LAYOUT, chain_of, record_at, until

RECORDS = [record_at(chain_of(list(range(40))), at) for at in range(10)]
SIZE = LAYOUT.page_bytes


@pytest.fixture
def make():
    made = []

    def giving(end: FakeEnd, *, max_bytes: int = 100 * SIZE, keep_s: float = 5.0) -> Giving:
        made.append(Giving(end, max_bytes=max_bytes, keep_s=keep_s))
        return made[-1]

    yield giving
    for each in made:
        each.close()


def test_a_frame_names_pages_whose_bytes_wait_in_order(make):
    end = FakeEnd()
    giving = make(end)
    frame = giving.frame(3, RECORDS[3:7])
    assert (frame.first_page, len(frame.pages)) == (3, 4)
    assert [(page.key, page.digest) for page in frame.pages] == [
        (record.key, record.digest) for record in RECORDS[3:7]
    ]
    assert not any(page.payload for page in frame.pages)
    held, _ = end.held[frame.direct]
    assert held == b"".join(record.payload for record in RECORDS[3:7])
    assert giving.counts.bytes == 4 * SIZE


def test_what_was_fetched_makes_room(make):
    giving = make(FakeEnd(), max_bytes=5 * SIZE)
    first = giving.frame(0, RECORDS[:4])
    assert giving.frame(4, RECORDS[4:6]) is None  # which go in frames
    giving.fetched([first.direct, 12345])
    assert (giving.counts.bytes, giving.counts.fetched) == (0, 1)
    assert giving.frame(4, RECORDS[4:9]) is not None
    giving.fetched([first.direct])  # said again
    assert (giving.counts.bytes, giving.counts.fetched) == (5 * SIZE, 1)
    assert (giving.counts.given, giving.counts.refused) == (2, 1)


def test_what_nobody_fetches_is_dropped_when_its_time_is_over(make):
    end = FakeEnd()
    giving = make(end, keep_s=0.1)
    giving.frame(0, RECORDS[:2])
    giving.frame(2, RECORDS[2:3])
    assert len(end.held) == 2
    assert until(lambda: giving.counts.unfetched == 2)
    assert (giving.counts.bytes, end.held) == (0, {})
    assert 1 <= end.sweeps <= 2
    assert until(lambda: end.renewals == 1)  # not for each
    assert giving.frame(3, RECORDS[3:4]).direct_port == 8
    assert until(lambda: end.renewals == 2)


def test_a_sweep_that_fails_does_not_end_the_giving(make, caplog):
    end = FakeEnd(bad_sweeps=1)
    giving = make(end, keep_s=0.1)
    giving.frame(0, RECORDS[:2])
    assert until(lambda: giving.counts.unfetched == 1)
    assert giving.counts.bytes == 0
    assert "may still be held by the direct transport" in caplog.text
    giving.frame(2, RECORDS[2:3])
    assert until(lambda: giving.counts.unfetched == 2)
    assert (end.sweeps, end.held) == (2, {})


@pytest.mark.parametrize("failure", [DirectFailed, MemoryError])
def test_what_cannot_be_held_goes_in_frames(make, failure):
    giving = make(FakeEnd(fail=True, failure=failure))
    assert giving.frame(0, RECORDS[:2]) is None
    assert (giving.counts.bytes, giving.counts.refused) == (0, 1)


def test_nothing_is_given_after_the_end(make):
    giving = make(FakeEnd())
    giving.close()
    assert giving.frame(0, RECORDS[:2]) is None


def test_an_array_has_a_few_pages_or_a_large_one():
    assert pages_at_once(1) == MAX_PAGES
    assert pages_at_once(ARRAY_BYTES // 4) == 4
    assert pages_at_once(3 * ARRAY_BYTES) == 1
