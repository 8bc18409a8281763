"""The index of pages against a plain one, under random events, gaps, restarts and snapshots."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtp_jax.router import page_index
from rtp_jax.router.facts import EventKind, PageEvent, PageEvents, Tier
from rtp_jax.router.page_index import EXPECTED, Held, PageIndex, short, shortened

WORKERS = ("a", "b", "c")
KEYS = [bytes([i]) * 16 for i in range(8)]
INSERTED, EVICTED, CLEARED = EventKind.INSERTED, EventKind.EVICTED, EventKind.CLEARED


def inserted(*numbers: int, tier: Tier = Tier.DEVICE) -> list[PageEvent]:
    return [PageEvent(INSERTED, tier, KEYS[i]) for i in numbers]


def match(index: PageIndex, *numbers: int) -> dict[str, Held]:
    return index.match(shortened([KEYS[i] for i in numbers]))


def started(*workers: str) -> PageIndex:
    index = PageIndex()
    for worker in workers:
        index.open(worker)
        assert index.apply(worker, PageEvents(1, [], snapshot=True))
    return index


class AgainstPlain(RuleBasedStateMachine):
    """Sets of keys for each worker and tier say what must be found."""

    @initialize()
    def start(self):
        self.index = PageIndex()
        self.held: dict[str, list[set[bytes]]] = {}
        self.number: dict[str, int] = {}

    @rule(worker=st.sampled_from(WORKERS))
    def open(self, worker):
        self.index.open(worker)
        self.held[worker] = [set(), set(), set(), set()]
        self.number[worker] = 0

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.index.close(worker)
        del self.held[worker], self.number[worker]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), parts=st.lists(st.lists(st.sampled_from(KEYS)), min_size=1, max_size=3))
    def snapshot(self, data, parts):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        first = data.draw(st.integers(1, 5)) + self.number[worker]
        self.held[worker] = [set(), set(), set(), set()]
        for i, keys in enumerate(parts):
            more = i + 1 < len(parts)
            events = [PageEvent(INSERTED, Tier(i), key) for key in keys]
            assert self.index.apply(worker, PageEvents(first, events, snapshot=True, more=more))
            self.held[worker][i].update(keys)
            # What comes in between is refused, and asked for again.
            assert self.index.next_event(worker) == (0 if more else first + 1)
            if more:
                assert not self.index.apply(worker, PageEvents(first + 1, inserted(0)))
        self.number[worker] = first + 1

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        events=st.lists(
            st.builds(
                PageEvent,
                st.sampled_from([INSERTED, INSERTED, EVICTED, CLEARED]),
                st.sampled_from(Tier),
                st.sampled_from(KEYS),
            )
        ),
        skip=st.integers(-2, 2),
    )
    def happen(self, data, events, skip):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        first = self.number[worker] + skip
        in_order = self.number[worker] > 0 and 0 < first <= self.number[worker]
        assert self.index.apply(worker, PageEvents(first, events)) == in_order
        if not in_order:
            return
        for kind, tier, key in events[max(0, -skip) :]:
            if kind == CLEARED:
                self.held[worker][tier].clear()
            elif kind == INSERTED:
                self.held[worker][tier].add(key)
            else:
                self.held[worker][tier].discard(key)
        self.number[worker] = max(self.number[worker], first + len(events))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=st.lists(st.sampled_from(KEYS), unique=True), num=st.integers(0, 3))
    def expect(self, data, keys, num):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.index.expect(worker, shortened(keys), num)
        self.held[worker][EXPECTED].update(keys[num:])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keys=st.lists(st.sampled_from(KEYS), unique=True))
    def withdraw(self, data, keys):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        self.index.withdraw(worker, shortened(keys))
        self.held[worker][EXPECTED].difference_update(keys)

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True))
    def find(self, keys):
        expected = {}
        for worker, tiers in self.held.items():
            counts = [0, 0, 0, 0]
            for key in keys:
                fastest = next((tier for tier in range(4) if key in tiers[tier]), None)
                if fastest is None:
                    break
                counts[fastest] += 1
            if sum(counts):
                expected[worker] = Held(sum(counts), *counts[1:])
        assert self.index.match(shortened(keys)) == expected

    @invariant()
    def counts_are_right(self):
        for worker, tiers in self.held.items():
            assert self.index.counts(worker) == [len(keys) for keys in tiers]


AgainstPlain.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
test_it_agrees_with_a_plain_index = AgainstPlain.TestCase


def test_the_longest_prefix_of_each_worker_is_found_and_what_lies_behind_a_hole_is_not():
    index = started("a", "b", "c")
    index.apply("a", PageEvents(2, inserted(0, 1, 3)))
    index.apply("b", PageEvents(2, inserted(0, 1, 2, 3)))
    index.apply("c", PageEvents(2, inserted(1, 2, 3)))
    assert match(index, 0, 1, 2, 3) == {"a": Held(2), "b": Held(4)}


def test_pages_are_counted_by_the_fastest_tier_that_has_them():
    index = started("a")
    index.apply("a", PageEvents(2, inserted(0, 1)))
    index.apply("a", PageEvents(4, inserted(1, 2, tier=Tier.HOST)))
    index.apply("a", PageEvents(6, inserted(2, 3, tier=Tier.DISK)))
    index.expect("a", shortened([KEYS[i] for i in range(5)]), 4)
    assert match(index, 0, 1, 2, 3, 4) == {"a": Held(5, host=1, disk=1, expected=1)}


def test_a_gap_is_told_and_changes_nothing():
    index = started("a")
    assert index.apply("a", PageEvents(2, inserted(0)))
    assert not index.apply("a", PageEvents(4, inserted(1)))
    assert index.next_event("a") == 3
    assert index.apply("a", PageEvents(2, inserted(5, 1)))  # the first is known already
    assert match(index, 0, 1) == {"a": Held(2)}
    assert match(index, 5) == {}


def test_a_worker_without_a_snapshot_is_not_believed():
    index = PageIndex()
    index.open("a")
    assert index.next_event("a") == 0
    assert not index.apply("a", PageEvents(1, inserted(0)))
    assert match(index, 0) == {}


def test_what_a_former_life_held_is_forgotten_at_once_and_swept_out_later(monkeypatch):
    monkeypatch.setattr(page_index, "SWEEP_PAGES", 3)
    index = started("a", "b")
    index.apply("a", PageEvents(2, inserted(*range(8))))
    index.apply("b", PageEvents(2, inserted(0)))
    index.open("a")
    assert match(index, 0, 1) == {"b": Held(1)}
    assert len(index) == 8
    for number in range(2, 8):
        index.apply("b", PageEvents(number + 1, [PageEvent(EVICTED, Tier.HOST, KEYS[0])]))
    assert len(index) == 1
    # Its place is taken by the next worker, who is not taken for it.
    index.open("c")
    index.open("d")
    assert match(index, 0, 1) == {"b": Held(1)}


def test_it_stays_within_its_bound_and_keeps_what_is_used():
    index = PageIndex(max_pages=640)
    index.open("a")
    index.apply("a", PageEvents(1, [], snapshot=True))
    keys = [i.to_bytes(16, "little") for i in range(2000)]
    for i, key in enumerate(keys):
        index.apply("a", PageEvents(2 + i, [PageEvent(INSERTED, Tier.DEVICE, key)]))
        index.expect("a", shortened(keys[:1]), 1)  # the first page is used all the time
        assert len(index) <= 640
    assert index.counts("a") == [len(index), 0, 0, 0]
    assert index.num_forgotten == 2000 - len(index)
    assert index.match(shortened([keys[0], keys[1999]])) == {"a": Held(2)}
    assert index.match(shortened(keys[1:2])) == {}


@pytest.mark.parametrize("keys", [[], [bytes(16)], [bytes(range(16)), bytes(range(1, 17))]])
def test_keys_are_shortened_alike_one_by_one_and_together(keys):
    assert shortened(keys) == [short(key) for key in keys]
