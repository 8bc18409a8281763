"""Offers: what is held, for how long, within which budget; and what is said of those that ended."""

import threading
import time

import pytest

from rtp_jax.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from rtp_jax.transfer.offers import Offers
from tests.transfer.served import LAYOUT, chain_of, record_at, until

CHAIN = chain_of(list(range(41)))


def offers(ended=None, **options) -> Offers:
    settings = {"epoch": "e-1", "lease_s": 10.0, "max_bytes": 20 * LAYOUT.page_bytes} | options
    return Offers(on_end=(ended if ended is not None else []).append, **settings)


def opened(held: Offers, *, first_page=0, num_pages=4, deadline_s=None):
    deadline_s = time.monotonic() + 60 if deadline_s is None else deadline_s
    return held.open(
        "r-1",
        first_page=first_page,
        num_pages=num_pages,
        page_bytes=LAYOUT.page_bytes,
        deadline_s=deadline_s,
    )


@pytest.fixture
def ended():
    return []


@pytest.fixture
def held(ended):
    made = offers(ended)
    yield made
    made.close()
    assert made.counts.open == made.counts.bytes == 0


def test_pages_are_taken_in_order_as_far_as_they_are_there(held):
    offer = opened(held)
    records = [record_at(CHAIN, at) for at in range(4)]
    for at in (0, 1, 3):
        held.publish(offer, at, records[at])
    assert held.take(offer.id, "e-1", 0, 9) == records[:2]
    assert held.take(offer.id, "e-1", 0, 1) == records[:1]
    assert held.take(offer.id, "e-1", 2, 9) == []
    held.publish(offer, 2, records[2])
    assert held.take(offer.id, "e-1", 1, 9) == records[1:]
    assert held.take(offer.id, "e-1", 4, 9) == []
    held.ack(offer.id, "e-1")


@pytest.mark.parametrize(("first_page", "taken", "behind"), [(0, 0, 4), (0, 3, 1), (2, 2, 2)])
def test_it_is_told_how_long_the_last_pages_took(first_page, taken, behind):
    told: list[tuple[int, float]] = []
    held = offers(on_arrival=lambda num_bytes, seconds: told.append((num_bytes, seconds)))
    offer = opened(held, first_page=first_page)
    for at in range(first_page, 3):
        held.publish(offer, at, record_at(CHAIN, at))
    held.take(offer.id, "e-1", first_page, taken - first_page)
    held.publish(offer, 3, record_at(CHAIN, 3))
    time.sleep(0.02)
    held.ack(offer.id, "e-1")
    held.ack(offer.id, "e-1")  # a message that came twice
    ((num_bytes, seconds),) = told
    assert num_bytes == behind * LAYOUT.page_bytes
    assert 0.02 <= seconds < 10
    for end in (held.release, held.ack):  # neither says that pages have arrived
        end(opened(held).id, "e-1")
    assert len(told) == 1
    held.close()


def test_an_offer_ends_once_and_says_how(held, ended):
    offer = opened(held)
    held.release(offer.id, "e-1")
    held.release(offer.id, "e-1")  # a message that came twice
    assert (held.counts.released, ended) == (1, [offer])
    with pytest.raises(NotFound, match=r"RTPJ-4304 OFFER_ENDED: .* is released"):
        held.take(offer.id, "e-1", 0, 9)
    held.publish(offer, 0, record_at(CHAIN, 0))  # which was on its way
    assert held.counts.published == 0
    with pytest.raises(NotFound, match="not made by this engine"):
        held.extend("another", "e-1")


def test_a_complete_offer_ends_without_an_abort(held, ended):
    offer = opened(held, num_pages=1)
    held.publish(offer, 0, record_at(CHAIN, 0))
    held.ack(offer.id, "e-1")
    assert (ended, held.counts.acked) == ([], 1)


def test_a_lease_ends_by_itself_while_nothing_else_happens(ended):
    held = offers(ended, lease_s=0.05)
    offer = opened(held)
    assert until(lambda: held.counts.expired == 1)
    assert ended == [offer]
    with pytest.raises(NotFound, match="past its lease"):
        held.find(offer.id, "e-1")
    held.close()


def test_pulling_and_extending_renew_a_lease():
    held = offers(lease_s=0.3)
    pulled, extended, alone = opened(held), opened(held), opened(held)
    for _ in range(10):
        held.take(pulled.id, "e-1", 0, 1)
        assert held.extend(extended.id, "e-1") == 0.3
        time.sleep(0.05)
    assert held.find(pulled.id, "e-1") is pulled
    assert held.find(extended.id, "e-1") is extended
    with pytest.raises(NotFound):
        held.find(alone.id, "e-1")
    held.close()


def test_a_deadline_ends_an_offer_that_is_pulled(ended):
    held = offers(ended)
    offer = opened(held, deadline_s=time.monotonic() + 0.05)
    assert until(lambda: held.counts.expired == 1)
    with pytest.raises(NotFound, match="past its deadline"):
        held.take(offer.id, "e-1", 0, 1)
    held.close()


def test_room_is_reserved_for_what_will_be_published(held):
    first = opened(held, num_pages=12)
    with pytest.raises(ResourceExhausted, match="RTPJ-4305 OFFERS_FULL") as refused:
        opened(held, num_pages=9)
    assert refused.value.retry_after_s
    second = opened(held, first_page=4, num_pages=12)  # only those behind its first page count
    held.release(first.id, "e-1")
    held.release(opened(held, num_pages=12).id, "e-1")
    held.release(second.id, "e-1")
    assert held.counts.refused == 1


def test_another_epoch_is_refused(held):
    offer = opened(held)
    for call in (held.extend, held.ack, held.release, held.find):
        with pytest.raises(FailedPrecondition, match="RTPJ-4303 EPOCH_DIFFERS"):
            call(offer.id, "e-0")


def test_a_page_that_was_never_offered_is_refused(held):
    offer = opened(held, first_page=2)
    for at in (0, 1, 5, 2**32 - 1):
        with pytest.raises(InvalidArgument, match="RTPJ-4306 PAGE_NOT_OFFERED"):
            held.take(offer.id, "e-1", at, 1)


def test_after_a_failure_what_is_there_can_still_be_taken(held):
    offer = opened(held)
    held.publish(offer, 0, record_at(CHAIN, 0))
    held.fail(offer, "The step failed.")
    assert len(held.take(offer.id, "e-1", 0, 9)) == 1
    with pytest.raises(Unavailable, match=r"RTPJ-4307 OFFER_FAILED: page 1 .*: The step failed."):
        held.take(offer.id, "e-1", 1, 9)


def test_watchers_are_woken_by_pages_failures_and_ends(held):
    offer, woken = opened(held), []
    with held.watching(offer, lambda: woken.append(threading.get_ident())):
        held.publish(offer, 0, record_at(CHAIN, 0))
        held.fail(offer, "Why.")
        held.release(offer.id, "e-1")
    assert len(woken) == 3


def test_a_closed_engine_offers_nothing(ended):
    held = offers(ended)
    offer = opened(held)
    held.close()
    held.close()
    assert ended == [offer]
    with pytest.raises(Unavailable, match="RTPJ-4307"):
        opened(held)
