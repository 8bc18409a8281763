"""Sequences that wait for pages of a slower tier: who waits, who goes on, and what is left over."""

import dataclasses

import pytest

from rtp_jax.cache.tiers.host import HostTier
from rtp_jax.errors import DeadlineExceeded
from rtp_jax.request import FinishReason, Publication, Reuse
from rtp_jax.scheduler.outcome import within
from tests.cache.tiers.lossy import LossyStore
from tests.scheduler.simulated import VOCAB, Simulation, oracle, request

LARGE = 1_000_000
TEXTS = [[(i * i * 3 + 7 * i + text) % VOCAB for i in range(40)] for text in range(4)]
FULL = 36  # tokens of a text's pages before its last token


def with_tiers(**options) -> Simulation:
    """Put host memory below a small device; each page is copied as soon as it is full."""
    chosen = {"num_pages": 13, "stores": [HostTier(LARGE)], "write_hits": 0} | options
    return Simulation(page_size=4, **chosen)


def ask(simulation: Simulation, name: str, text: int, **options) -> None:
    """Add a request for one of the texts."""
    asked = request(name, TEXTS[text], max_tokens=4)
    simulation.add(dataclasses.replace(asked, **options))


def only_in_tiers(simulation: Simulation, *texts: int) -> None:
    """Compute some texts and have the device forget them."""
    for text in texts:
        ask(simulation, f"before-{text}", text)
        simulation.run()
    simulation.threads.run()
    simulation.scheduler._ledger.forget_all()


def freeze(simulation: Simulation, turns: int) -> None:
    """Take turns in which nothing arrives."""
    simulation.threads.run = lambda most=0: None
    for _ in range(turns):
        simulation.step()
        simulation.check()
    del simulation.threads.run


def test_pages_that_the_device_lost_are_loaded():
    simulation = with_tiers(write_hits=None)
    for text in (0, 1):  # each nearly fills the device
        ask(simulation, f"before-{text}", text)
        simulation.run()
    ask(simulation, "again", 0)
    simulation.run()
    again = simulation.last("again")
    assert set(again.cached_tokens) <= {"device", "host"}
    assert again.cached_tokens["host"] > 0
    assert again.num_cached_tokens == sum(again.cached_tokens.values()) == FULL
    assert simulation.token_ids("again") == simulation.token_ids("before-0")
    ask(simulation, "third", 0)
    simulation.run()
    assert simulation.last("third").cached_tokens == {"device": FULL}  # they are back
    simulation.close()


def test_others_advance_while_a_sequence_is_parked():
    simulation = with_tiers(num_pages=40)
    only_in_tiers(simulation, 0)
    ask(simulation, "parked", 0)
    ask(simulation, "other", 2)
    freeze(simulation, 8)
    assert simulation.scheduler.num_parked == 1
    assert simulation.token_ids("other")
    assert not simulation.token_ids("parked")
    simulation.run()
    assert simulation.last("parked").cached_tokens == {"host": FULL}
    assert simulation.scheduler.counters.tier_hit_tokens == {"host": FULL}
    simulation.close()


def test_a_parked_sequence_holds_neither_pages_nor_a_slot():
    simulation = with_tiers(num_pages=40)
    only_in_tiers(simulation, 0)
    ask(simulation, "parked", 0)
    freeze(simulation, 3)
    assert simulation.scheduler.is_parked
    assert simulation.scheduler._ledger.pool.num_used == 0
    assert simulation.scheduler.num_running == 0
    simulation.run()
    simulation.close()


def test_what_comes_late_is_computed():
    simulation = with_tiers()
    only_in_tiers(simulation, 0)
    ask(simulation, "late", 0)
    freeze(simulation, 2)
    simulation.now_s += 60.0
    freeze(simulation, 20)
    assert simulation.token_ids("late") == simulation.token_ids("before-0")
    assert simulation.last("late").cached_tokens == {}
    assert simulation.hierarchy.counters.timeouts == 1
    simulation.run()
    simulation.close()


@pytest.mark.parametrize("end", ["abort", "deadline"])
def test_a_parked_sequence_can_end(end):
    simulation = with_tiers()
    only_in_tiers(simulation, 0)
    ask(simulation, "parked", 0, deadline_s=simulation.now_s + 0.05)
    freeze(simulation, 2)
    if end == "abort":
        simulation.deliver(simulation.scheduler.abort("parked"))
    else:
        freeze(simulation, 6)
        assert isinstance(simulation.last("parked").error, DeadlineExceeded)
    assert simulation.last("parked").finish_reason is FinishReason.ABORT
    assert simulation.scheduler.num_parked == 0
    simulation.run()
    simulation.close()


def test_equal_prompts_are_loaded_once():
    simulation = with_tiers(num_pages=60)
    only_in_tiers(simulation, 0)
    before = simulation.hierarchy.counters.fetches
    for name in "abc":
        ask(simulation, name, 0)
    simulation.run()
    assert simulation.hierarchy.counters.fetches == before + 1
    cached = [simulation.last(name).cached_tokens for name in "abc"]
    assert cached == [{"host": FULL}, {"device": FULL}, {"device": FULL}]
    simulation.close()


def test_the_books_survive_a_device_that_is_lost_while_a_sequence_is_parked():
    simulation = with_tiers(num_pages=40)
    only_in_tiers(simulation, 0)
    ask(simulation, "parked", 0)
    ask(simulation, "running", 1)
    freeze(simulation, 3)
    simulation.in_flight.clear()
    simulation.scheduler.requeue_running()
    simulation.runner.reset()
    simulation.run()
    assert simulation.last("parked").cached_tokens == {"host": FULL}
    assert simulation.token_ids("running") == oracle(request("", TEXTS[1], max_tokens=4), 0)
    simulation.close()


def test_more_than_staging_holds_is_loaded_in_part():
    simulation = with_tiers(staging_pages=5)
    only_in_tiers(simulation, 0)
    ask(simulation, "again", 0)
    simulation.run()
    assert 0 < simulation.last("again").cached_tokens["host"] <= 5 * 4
    simulation.close()


@pytest.mark.parametrize(
    ("reuse", "expected"),
    [
        (Reuse(), {"host": FULL}),
        (Reuse(host=False), {}),
        (Reuse(disk=False, remote=False), {"host": FULL}),
        (Reuse(device=False), {"host": FULL}),
        (Reuse(device=False, host=False), {}),
    ],
)
def test_a_request_chooses_the_tiers_that_it_reads(reuse, expected):
    simulation = with_tiers()
    only_in_tiers(simulation, 0)
    ask(simulation, "chooses", 0, reuse=reuse)
    simulation.run()
    assert simulation.last("chooses").cached_tokens == expected
    assert simulation.token_ids("chooses") == simulation.token_ids("before-0")
    simulation.close()


@pytest.mark.parametrize("reuse", [Reuse(host=False), Reuse(device=False)])
def test_a_request_chooses_the_tiers_that_get_its_pages(reuse):
    simulation = with_tiers()
    ask(simulation, "private", 0, reuse=reuse)
    simulation.run()
    assert simulation.hierarchy.usage() == {"host": (0, 0)}
    simulation.close()


def test_pages_with_broken_numbers_leave_the_tiers_too():
    simulation = with_tiers()
    simulation.runner.poisoned.add("nan")
    ask(simulation, "nan", 0)
    simulation.run()
    assert simulation.last("nan").finish_reason is FinishReason.ERROR
    chain = request("", TEXTS[0])
    ask(simulation, "after", 0)
    simulation.run()
    assert simulation.last("after").cached_tokens == {}
    assert simulation.token_ids("after") == oracle(dataclasses.replace(chain, max_tokens=4), 0)
    simulation.close()


def test_a_lossy_tier_costs_no_token():
    store = LossyStore(HostTier(LARGE), seed=1)
    simulation = with_tiers(num_pages=14, stores=[store])
    for number in range(40):
        ask(simulation, f"r{number}", number % 4)
        if number % 3 == 0:
            simulation.run()
    simulation.run()
    expected = [oracle(request("", text, max_tokens=4), 0) for text in TEXTS]
    for number in range(40):
        assert simulation.token_ids(f"r{number}") == expected[number % 4]
    counters = simulation.hierarchy.counters.tiers["remote"]
    assert counters.pages_read
    assert counters.pages_corrupt
    simulation.close()


class Published:
    """Collects what a prefill hands out."""

    def __init__(self):
        self.records = {}

    def __call__(self, at: int, record) -> None:
        assert at not in self.records
        self.records[at] = record


@pytest.mark.parametrize("first_page", [0, 3])
@pytest.mark.parametrize("tokens", [33, 36, 37, 40])
def test_a_prefill_for_others_publishes_its_full_pages_and_samples_nothing(tokens, first_page):
    simulation = Simulation(num_pages=30, page_size=4)
    for name in ("first", "again"):  # the second one finds nearly all of it computed
        published = Published()
        simulation.add(
            dataclasses.replace(
                request(name, TEXTS[0][:tokens]), publication=Publication(first_page, published)
            )
        )
        simulation.run()
        assert sorted(published.records) == list(range(first_page, (tokens - 1) // 4))
        assert all(record.sound for record in published.records.values())
        assert simulation.token_ids(name) == []
        assert simulation.last(name).finish_reason is FinishReason.LENGTH
    assert simulation.last("again").num_cached_tokens == ((tokens - 1) // 4 - 1) * 4


def test_published_pages_are_those_that_another_engine_needs():
    prefill, decode = Simulation(num_pages=30, page_size=4), with_tiers()
    published, store = Published(), decode.hierarchy.stores[0]
    asked = dataclasses.replace(request("p", TEXTS[0]), publication=Publication(0, published))
    prefill.add(asked)
    ask(prefill, "busy", 1)  # others run beside it
    prefill.run()
    for record in published.records.values():
        store.write(record)
    ask(decode, "d", 0)
    decode.run()
    assert decode.last("d").cached_tokens == {"host": FULL}
    assert decode.token_ids("d") == oracle(request("", TEXTS[0], max_tokens=4), 0)
    decode.close()


def test_pages_are_published_while_the_rest_is_computed():
    simulation = Simulation(num_pages=30, page_size=4, max_num_batched_tokens=8)
    published = Published()
    simulation.add(
        dataclasses.replace(request("p", TEXTS[0]), publication=Publication(0, published))
    )
    counts = []
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        counts.append(len(published.records))
    assert counts[:5] == [0, 2, 4, 6, 8]
    simulation.run()
    assert len(published.records) == 9


@pytest.mark.parametrize(
    ("last_chunk", "expected"),
    [(0, [0, 3, 6, 9]), (4, [0, 3, 6, 8, 9]), (6, [0, 3, 6, 7, 9]), (8, [0, 3, 6, 9])],
)
def test_what_others_wait_for_may_end_with_a_short_step(last_chunk, expected):
    simulation = Simulation(num_pages=30, page_size=4, max_num_batched_tokens=12)
    published = Published()
    publication = Publication(0, published, last_chunk)
    simulation.add(dataclasses.replace(request("p", TEXTS[0]), publication=publication))
    counts = []
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        counts.append(len(published.records))
    simulation.run()
    assert [*dict.fromkeys([*counts, len(published.records)])] == expected
    assert all(record.sound for record in published.records.values())


def test_a_long_prompt_waits_for_staging_and_nobody_overtakes_it():
    simulation = with_tiers(num_pages=60, staging_pages=10)
    only_in_tiers(simulation, 0, 1, 2)
    for name, text in (("first", 0), ("second", 1), ("third", 2)):
        ask(simulation, name, text)
    freeze(simulation, 3)
    assert simulation.scheduler.num_parked == 1  # 9 pages of 10
    simulation.run()
    for name in ("first", "second", "third"):
        assert simulation.last(name).cached_tokens == {"host": FULL}  # all of it, in its time
    simulation.close()


@pytest.mark.parametrize(
    ("num_prompt", "expected"),
    [(60, {"device": 16, "host": 32}), (40, {"device": 16, "host": 24}), (9, {"device": 9})],
)
def test_what_was_found_is_counted_within_the_prompt(num_prompt, expected):
    assert within({"device": 16, "host": 32}, num_prompt) == expected
