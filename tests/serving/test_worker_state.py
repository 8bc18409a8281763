"""What a worker reports: facts, loads, and page events that never drift from what it holds."""

import time

import grpc
import pytest

from rtp_jax import SamplingParams
from rtp_jax.cache.page_events import MAX_EVENTS, Kind, PageEvents, Tier
from rtp_jax.cache.tiers.disk import DiskTier
from rtp_jax.cache.tiers.host import HostTier
from rtp_jax.errors import InvalidArgument
from rtp_jax.page_record import record_of
from rtp_jax.serving.status import error_of
from rtp_jax.serving.worker_reports import events_of, facts_of, load_of
from rtp_jax.serving.worker_state import _Pages
from rtp_jax.wire import router_pb2 as pb
from rtp_jax.wire.router_pb2_grpc import WorkerStateStub


@pytest.fixture
def stub(real):
    with grpc.insecure_channel(real.address) as channel:
        yield WorkerStateStub(channel)


def held(reports, events, seconds: float) -> set[bytes]:
    """Follow the events of some reports for some time."""
    keys, until = set(), time.monotonic() + seconds
    for report in reports:
        if report.HasField("events"):
            keys = followed(keys, report.events)
        if time.monotonic() > until:
            return keys
    raise AssertionError("the reports ended")


def followed(keys: set[bytes], events: pb.PageEvents) -> set[bytes]:
    """Apply events to what was known."""
    keys = set() if events.snapshot and not events.first_event else set(keys)
    for event in events.events:
        if event.kind == pb.PageEvent.KIND_INSERTED:
            keys.add(event.key)
        elif event.kind == pb.PageEvent.KIND_EVICTED:
            keys.discard(event.key)
        else:
            keys.clear()
    return keys


def test_a_watch_begins_with_facts_load_and_snapshot_and_follows_the_pages(real_engine, stub, real):
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    real_engine.generate([[i] * 40 for i in range(9, 14)], params, use_tqdm=False)
    watch = stub.Watch(pb.WatchRequest(period_s=0.1), timeout=60)
    first, second, third = (next(watch) for _ in range(3))
    facts, load, events = first.facts, second.load, third.events
    info = real_engine.info
    assert (facts.epoch, facts.page_size, facts.role) == (info.epoch, info.page_size, "both")
    assert facts_of(facts, "a").hashing.page_key == real_engine.watched.page_key
    assert load.num_free_pages + load.num_cached_pages == facts.num_pages
    assert load_of(load).num_running == 0
    index = real_engine._parts.scheduler._ledger.index
    assert events.snapshot
    assert {event.key for event in events.events} == set(index._by_key)
    real_engine.generate([[i] * 60 for i in range(20, 40)], params, use_tqdm=False)
    assert held(watch, events, 0.5) >= set()
    watch.cancel()
    fresh = stub.Watch(pb.WatchRequest(epoch=info.epoch, from_event=events.first_event + 1))
    keys = {event.key for event in events.events}
    for _, report in zip(range(3), fresh, strict=False):
        if report.HasField("events"):
            assert not report.events.snapshot
            assert report.events.first_event == events.first_event + 1
            keys = followed(keys, report.events)
    fresh.cancel()
    assert keys == set(index._by_key)


def test_steps_are_reported_as_they_were_measured(real_engine, stub):
    watch = stub.Watch(pb.WatchRequest(period_s=0.1), timeout=60)
    next(watch)
    real_engine.generate([[5] * 50], SamplingParams(max_tokens=20, ignore_eos=True), use_tqdm=False)
    steps = []
    for report in watch:
        steps += report.load.steps
        if sum(step.num_decoding for step in steps) >= 19:
            break
    watch.cancel()
    assert sum(step.prefill_tokens for step in steps) >= 2  # of 50, what the cache has not
    assert all(0 < step.seconds < 5 for step in steps)
    decoding = [step for step in steps if step.num_decoding == 1 and not step.prefill_tokens]
    assert [step.context_tokens for step in decoding] == list(range(51, 51 + len(decoding)))


def test_a_role_can_be_changed(stub):
    watch = stub.Watch(pb.WatchRequest(), timeout=60)
    assert next(watch).facts.role == "both"
    assert stub.SetRole(pb.SetRoleRequest(role="decode")).role == "both"
    facts = next(report.facts for report in watch if report.HasField("facts"))
    assert facts.role == "decode"
    assert stub.SetRole(pb.SetRoleRequest(role="both")).role == "decode"
    watch.cancel()
    with pytest.raises(grpc.RpcError) as refused:
        stub.SetRole(pb.SetRoleRequest(role="cook"))
    error = error_of(refused.value)
    assert isinstance(error, InvalidArgument)
    assert error.id == "RTPJ-4311"


def test_who_reads_slowly_gets_a_snapshot_and_costs_no_memory():
    events = PageEvents(max_events=100)
    held_now: dict[bytes, None] = {}
    events.holds(Tier.DEVICE, lambda: list(held_now))
    pages = _Pages(events, 0)
    known: set[bytes] = set()

    def catch_up():
        nonlocal known
        for message in pages.news():
            if message.snapshot:
                known = set()
            known = followed(known, message)

    catch_up()
    for number in range(1000):
        key = number.to_bytes(16, "little")
        held_now[key] = None
        events.inserted(Tier.DEVICE, key)
        if number >= 50:
            gone = (number - 50).to_bytes(16, "little")
            del held_now[gone]
            events.evicted(Tier.DEVICE, gone)
        if number % 37 == 0 and not 400 < number < 800:
            catch_up()
    assert len(events._kept) <= 200
    catch_up()
    assert known == set(held_now)


def test_large_snapshots_and_many_events_come_in_pieces():
    events = PageEvents()
    keys = [number.to_bytes(16, "little") for number in range(20_000)]
    events.holds(Tier.DEVICE, lambda: keys)
    pages = _Pages(events, 0)
    parts = list(pages.news())
    assert [part.more for part in parts] == [True, True, False]
    assert {part.first_event for part in parts} == {1}
    assert [e.key for part in parts for e in events_of(part).events] == keys
    for key in keys:
        events.evicted(Tier.DEVICE, key)
    parts = list(pages.news())
    assert [part.first_event for part in parts] == [2, 2 + 8192, 2 + 2 * 8192]
    assert not list(pages.news())
    events.cleared(Tier.DEVICE)
    (last,) = pages.news()
    assert last.events[0].kind == Kind.CLEARED


def test_nothing_is_kept_before_somebody_follows():
    events = PageEvents()
    for number in range(10):
        events.inserted(Tier.DEVICE, bytes([number] * 16))
    assert not events._kept
    assert events.since(events.next_event) is None
    assert events.next_event < MAX_EVENTS


def test_each_tier_tells_what_it_holds(tmp_path):
    events = PageEvents()
    pages = _Pages(events, 0)
    list(pages.news())
    host = HostTier(3 * 1100, events.of(Tier.HOST))
    disk = DiskTier(str(tmp_path / "kv"), 10_000, b"layout", events.of(Tier.DISK))
    records = [record_of(bytes([i] * 16), bytes(16), b"", b"x" * 512) for i in range(1, 6)]
    for record in records:
        for left in host.write(record):
            disk.write(left)
    held_by = {Tier.HOST: set(), Tier.DISK: set()}
    for event in (event for message in pages.news() for event in message.events):
        keys = held_by[event.tier]
        (keys.add if event.kind == Kind.INSERTED else keys.discard)(event.key)
    assert held_by[Tier.HOST] == {record.key for record in records[2:]}
    assert held_by[Tier.DISK] == {record.key for record in records[:2]}
    anew = {(e.tier, e.key) for message in _Pages(events, 0).news() for e in message.events}
    assert anew == {(tier, key) for tier, keys in held_by.items() for key in keys}
    host.clear()
    (last,) = pages.news()
    assert (last.events[-1].kind, last.events[-1].tier) == (Kind.CLEARED, Tier.HOST)
