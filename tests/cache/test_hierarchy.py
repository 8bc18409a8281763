"""What goes down, what comes up, what is cheaper; and a state machine over all of it."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from rtp_jax.cache.hierarchy import Hierarchy, HierarchyOptions
from rtp_jax.cache.tiers.disk import DiskTier
from rtp_jax.cache.tiers.host import OVERHEAD, HostTier
from rtp_jax.cache.tiers.record_bytes import size_of
from rtp_jax.request import Reuse
from tests.cache.tiers.pages import NEVER, ROOT, key_of, record, wanted
from tests.scheduler.deferred import Deferred

PAGE, PAGE_SIZE = 100, 16
HOST_RECORD = PAGE + 2 + OVERHEAD


def hierarchy_of(stores, *, threads=None, **options) -> Hierarchy:
    chosen = {
        "page_size": PAGE_SIZE,
        "page_bytes": PAGE,
        "largest_copy": 3,
        "staging_bytes": 50 * PAGE,
    }
    threads = threads or Deferred()
    return Hierarchy(
        stores,
        HierarchyOptions(**(chosen | options)),
        stage=list,
        on_arrival=int,
        threads=lambda *_: threads,
    )


def give_up(hierarchy: Hierarchy, chain: int, at: int, **options) -> bool:
    """Let the device lose a page; say whether anybody wanted it."""
    sink = hierarchy.reader(key_of(chain, at), options.pop("reuse", Reuse()), **options)
    if sink is not None:
        sink(record(chain, at))
    return sink is not None


def load(hierarchy: Hierarchy, ask) -> tuple[str, ...]:
    """Fetch all that is worth it; return the tier of each page that came."""
    count = hierarchy.worth_loading(ask, 10_000)
    if count == 0:
        return ()
    fetch = hierarchy.fetch(ask.upto(count), 0.0)
    hierarchy._executor.run()
    loaded = fetch.loaded()
    payloads = [payload for batch in loaded.batches for payload in batch.staged]
    tiers = tuple(tier for batch in loaded.batches for tier in batch.tiers)
    chain = ask.keys[0][0] - 1
    assert payloads == [record(chain, ask.first + i).payload for i in range(len(tiers))]
    hierarchy.release(fetch)
    return tiers


def test_pages_go_down_a_tier_at_a_time_and_come_up_from_the_fastest(tmp_path):
    threads = Deferred()
    stores = [HostTier(2 * HOST_RECORD), DiskTier(str(tmp_path), 10_000, ROOT)]
    hierarchy = hierarchy_of(stores, threads=threads)
    for at in reversed(range(5)):
        assert give_up(hierarchy, 0, at)
        threads.run()
    assert load(hierarchy, wanted(0, 0, 9)) == ("host", "host", "disk", "disk", "disk")
    assert not give_up(hierarchy, 0, 0)  # host memory has it still
    assert give_up(hierarchy, 0, 4)  # only the disk had it; page 1 makes room for it
    threads.run()
    assert hierarchy.is_idle
    written = {name: each.pages_written for name, each in hierarchy.counters.tiers.items()}
    assert written == {"host": 6, "disk": 4}
    hierarchy.close()


def test_what_is_hit_often_goes_to_all_stores(tmp_path):
    stores = [HostTier(10 * HOST_RECORD), DiskTier(str(tmp_path), 10_000, ROOT)]
    hierarchy = hierarchy_of(stores)
    assert give_up(hierarchy, 0, 0, through=True)
    hierarchy.close()
    assert [store.usage()[0] for store in stores] == [0, 1]  # host memory ends with its engine
    assert hierarchy.counters.tiers["host"].pages_written == 1


def test_tiers_that_a_request_refuses_get_nothing_of_it(tmp_path):
    threads = Deferred()
    disk = DiskTier(str(tmp_path), 10_000, ROOT)
    hierarchy = hierarchy_of([HostTier(HOST_RECORD), disk], threads=threads)
    private = Reuse(disk=False)
    give_up(hierarchy, 0, 0, reuse=private)
    give_up(hierarchy, 1, 0)  # drives it out of host memory
    threads.run()
    assert disk.usage()[0] == 0
    give_up(hierarchy, 2, 0)
    threads.run()
    assert disk.holds(wanted(1, 0, 1)) == 1
    assert load(hierarchy, wanted(1, 0, 1, private)) == ()
    assert load(hierarchy, wanted(1, 0, 1)) == ("disk",)
    assert not give_up(hierarchy, 3, 0, reuse=Reuse(host=False, disk=False))
    assert not hierarchy._limited
    hierarchy.close()


def test_what_is_on_its_way_is_bounded():
    hierarchy = hierarchy_of([HostTier(100 * HOST_RECORD)], staging_bytes=3 * PAGE)
    sinks = [hierarchy.reader(key_of(0, at), Reuse()) for at in range(5)]
    assert [sink is not None for sink in sinks] == [True] * 3 + [False] * 2
    assert hierarchy.reader(key_of(0, 0), Reuse()) is None  # it is on its way already
    assert hierarchy.counters.tiers["host"].pages_dropped == 2
    for at, sink in enumerate(sinks[:3]):
        sink(record(0, at))
    fetch = hierarchy.fetch(wanted(0, 0, 9), 0.0)
    assert len(fetch.wanted) == 3  # as many as there is room for
    assert not hierarchy.has_room(1)
    hierarchy._executor.run()
    hierarchy.release(fetch)
    assert hierarchy.has_room(3)
    assert hierarchy.has_room(100)  # never more than all of it
    assert hierarchy.is_idle
    assert hierarchy.bytes_on_their_way == 0


def test_a_read_that_failed_leaves_nothing_behind():
    hierarchy = hierarchy_of([HostTier(HOST_RECORD)])
    hierarchy.reader(key_of(0, 0), Reuse())(None)
    assert hierarchy.is_idle
    assert hierarchy.usage() == {"host": (0, 0)}


def test_a_broken_record_ends_a_run_and_another_tier_goes_on(tmp_path):
    host, disk = HostTier(10 * HOST_RECORD), DiskTier(str(tmp_path), 10_000, ROOT)
    hierarchy = hierarchy_of([host, disk])
    for at in range(3):
        host.write(record(0, at))
        disk.write(record(0, at))
    broken = host._records[key_of(0, 1)]
    host._records[key_of(0, 1)] = type(broken)(
        broken.key, broken.parent, broken.packed, bytes(PAGE), broken.digest
    )
    assert load(hierarchy, wanted(0, 0, 3)) == ("host", "disk", "disk")
    assert not host.keeps(key_of(0, 1))
    assert hierarchy.counters.tiers["host"].pages_corrupt == 1


@pytest.mark.parametrize("broken", [None, 0, 4, 5, 9])
def test_large_records_are_checked_by_several_threads(monkeypatch, broken):
    monkeypatch.setattr("rtp_jax.cache.fetch.LARGE_BYTES", 1)
    monkeypatch.setattr("rtp_jax.cache.fetch.PART_BYTES", 2 * PAGE)
    host = HostTier(100 * HOST_RECORD)
    hierarchy = hierarchy_of([host], largest_copy=10)
    with ThreadPoolExecutor(3) as threads:
        hierarchy._checkers = threads
        load_large(hierarchy, host, broken)


def load_large(hierarchy: Hierarchy, host: HostTier, broken: int | None) -> None:
    for at in range(10):
        one = record(0, at)
        host.write(replace(one, payload=b"?" * PAGE) if at == broken else one)
    assert len(load(hierarchy, wanted(0, 0, 10))) == (10 if broken is None else broken)


@pytest.mark.parametrize(
    ("load_s", "prefill_s", "expected"),
    [(1e-3, 1e-2, 10), (1e-2, 1e-3, 0), (1e-2, 1.2e-2, 10)],
)
def test_the_cheaper_way_is_taken(load_s, prefill_s, expected):
    """Each page is loaded in `load_s` and computed in `prefill_s`."""
    host = HostTier(100 * HOST_RECORD)
    hierarchy = hierarchy_of([host])
    for at in range(10):
        host.write(record(0, at))
    assert hierarchy.worth_loading(wanted(0, 0, 10), 170) == 10  # nothing is known yet
    for pages in (1, 5, 20):
        hierarchy.load_cost["host"].observe(pages * PAGE, pages * load_s)
        hierarchy.prefill_cost.observe(pages * PAGE_SIZE, pages * prefill_s)
    assert hierarchy.worth_loading(wanted(0, 0, 10), 170) == expected
    assert hierarchy.counters.tiers["host"].declined == (expected == 0)


def test_the_best_split_ends_where_a_slow_tier_begins(tmp_path):
    host, disk = HostTier(100 * HOST_RECORD), DiskTier(str(tmp_path), 10**6, ROOT)
    hierarchy = hierarchy_of([host, disk])
    for at in range(10):
        (host if at < 6 else disk).write(record(0, at))
    for pages in (1, 5, 20):
        hierarchy.load_cost["host"].observe(pages * PAGE, pages * 1e-4)
        hierarchy.load_cost["disk"].observe(pages * PAGE, pages * 1e-2)
        hierarchy.prefill_cost.observe(pages * PAGE_SIZE, pages * 1e-3)
    assert hierarchy.worth_loading(wanted(0, 0, 10), 170) == 6


def test_a_slow_tier_is_measured_again_some_day():
    host = HostTier(100 * HOST_RECORD)
    hierarchy = hierarchy_of([host])
    host.write(record(0, 0))
    hierarchy.load_cost["host"].observe(PAGE, 2e-3)
    hierarchy.prefill_cost.observe(PAGE_SIZE, 1e-3)
    declined = 0
    while hierarchy.worth_loading(wanted(0, 0, 1), 17) == 0:
        declined += 1
        assert declined < 100
    assert declined > 10


def test_threads_end_with_the_hierarchy():
    hierarchy = Hierarchy(
        [HostTier(10 * HOST_RECORD)],
        HierarchyOptions(page_size=1, page_bytes=PAGE, largest_copy=3, staging_bytes=10 * PAGE),
        stage=list,
        on_arrival=int,
    )
    for at in range(4):
        give_up(hierarchy, 0, at)
    fetch = hierarchy.fetch(wanted(0, 0, 4), time.monotonic())
    until = time.monotonic() + 5
    while not fetch.done and time.monotonic() < until:
        time.sleep(0.001)
    assert len(fetch.loaded()) == 4
    hierarchy.release(fetch)
    hierarchy.close()


def test_a_clean_end_writes_what_only_host_memory_has(tmp_path):
    for flush_s, found in ((0.0, 0), (10.0, 4)):
        folder = str(tmp_path / f"{flush_s:g}")
        stores = [HostTier(100 * HOST_RECORD), DiskTier(folder, 10_000, ROOT)]
        threads = Deferred()
        hierarchy = hierarchy_of(stores, threads=threads, flush_s=flush_s)
        for at in reversed(range(4)):
            give_up(hierarchy, 0, at)
        give_up(hierarchy, 1, 0, reuse=Reuse(disk=False))
        threads.run()
        hierarchy.close()
        again = DiskTier(folder, 10_000, ROOT)
        assert again.holds(wanted(0, 0, 9)) == found
        assert again.holds(wanted(1, 0, 9)) == 0
        again.close()


def test_the_most_useful_pages_are_written_while_there_is_time(tmp_path):
    class Slow(DiskTier):
        def _write_file(self, *file):
            time.sleep(0.03)
            super()._write_file(*file)

    stores = [HostTier(100 * HOST_RECORD), Slow(str(tmp_path), 10_000, ROOT)]
    hierarchy = hierarchy_of(stores, flush_s=0.1)
    for chain in range(3):
        for at in reversed(range(5)):
            give_up(hierarchy, chain, at)
    list(stores[0].read(wanted(1, 0, 2), NEVER))
    began = time.monotonic()
    hierarchy.close()
    assert time.monotonic() - began < 1.0
    again = DiskTier(str(tmp_path), 10_000, ROOT)
    assert again.holds(wanted(1, 0, 2)) >= 1
    assert again.holds(wanted(0, 0, 2)) == 0
    again.close()


def test_a_next_life_with_less_room_keeps_what_was_used_last(tmp_path):
    stores = [HostTier(100 * HOST_RECORD), DiskTier(str(tmp_path), 10_000, ROOT)]
    hierarchy = hierarchy_of(stores, flush_s=10.0)
    for chain in range(3):
        for at in reversed(range(3)):
            give_up(hierarchy, chain, at)
    list(stores[0].read(wanted(1, 0, 2), NEVER))
    hierarchy.close()
    assert hierarchy.counters.tiers["disk"].pages_written == 9
    again = DiskTier(str(tmp_path), 5 * size_of(record(0, 0)), ROOT)
    assert [again.holds(wanted(chain, 0, 3)) for chain in range(3)] == [0, 2, 3]
    again.close()


CHAINS, LENGTH = 3, 6


class AnyMoves(RuleBasedStateMachine):
    """Pages go down and come up in any order, between two small stores and a reference model."""

    def __init__(self):
        super().__init__()
        self.threads = Deferred()
        self.host, self.below = HostTier(4 * HOST_RECORD), HostTier(6 * HOST_RECORD)
        self.below.name = "disk"
        self.hierarchy = hierarchy_of(
            [self.host, self.below], threads=self.threads, staging_bytes=8 * PAGE
        )
        self.fetches = []
        self.sinks = []

    @rule(chain=st.integers(0, CHAINS - 1), at=st.integers(0, LENGTH - 1), through=st.booleans())
    def lose(self, chain, at, through):
        sink = self.hierarchy.reader(key_of(chain, at), Reuse(), through=through)
        if sink is not None:
            self.sinks.append((sink, chain, at))

    @rule(failed=st.booleans())
    def arrive(self, failed):
        if self.sinks:
            sink, chain, at = self.sinks.pop(0)
            sink(None if failed else record(chain, at))

    @rule(chain=st.integers(0, CHAINS - 1), first=st.integers(0, LENGTH - 1))
    def fetch(self, chain, first):
        ask = wanted(chain, first, LENGTH)
        count = self.hierarchy.worth_loading(ask, 10_000)
        held = 0
        while held < len(ask) and any(s.keeps(ask.keys[held]) for s in (self.host, self.below)):
            held += 1
        assert count == held
        if count and self.hierarchy.has_room(1):
            self.fetches.append((chain, self.hierarchy.fetch(ask.upto(count), 0.0)))

    @rule(most=st.integers(1, 3))
    def work(self, most):
        self.threads.run(most)

    @rule()
    def release(self):
        if self.fetches:
            self.hierarchy.release(self.fetches.pop(0)[1])

    @rule(chain=st.integers(0, CHAINS - 1), at=st.integers(0, LENGTH - 1))
    def distrust(self, chain, at):
        self.hierarchy.forget([key_of(chain, at)])

    @invariant()
    def what_came_is_right(self):
        for chain, fetch in self.fetches:
            loaded = fetch.loaded()
            payloads = [payload for batch in loaded.batches for payload in batch.staged]
            right = [record(chain, loaded.first + i).payload for i in range(len(payloads))]
            assert payloads == right

    @invariant()
    def budgets_hold(self):
        assert self.host.usage()[1] <= 4 * HOST_RECORD
        assert self.below.usage()[1] <= 6 * HOST_RECORD
        up = sum(len(fetch.wanted) for _, fetch in self.fetches)
        assert self.hierarchy._bytes_up == up * PAGE <= 8 * PAGE
        assert self.hierarchy._bytes_down == len(self.sinks) * PAGE <= 8 * PAGE

    def teardown(self):
        for sink, _, _ in self.sinks:
            sink(None)
        for _, fetch in self.fetches:
            self.hierarchy.release(fetch)
        self.threads.run()
        assert self.hierarchy.is_idle
        assert self.hierarchy.bytes_on_their_way == 0
        self.hierarchy.close()


def test_any_moves():
    run_state_machine_as_test(
        AnyMoves, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
