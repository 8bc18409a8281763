"""The remote tier with a real Redis: shared; harmless when killed, hung, full or mad (R7)."""

import time

import pytest

from rtp_jax.cache.tiers import remote
from rtp_jax.cache.tiers.breaker import FIRST_PAUSE_S, THRESHOLD
from rtp_jax.cache.tiers.record_bytes import size_of
from rtp_jax.cache.tiers.redis_store import RedisStore
from rtp_jax.cache.tiers.remote import BASE_S, RemoteTier
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from tests.cache.tiers.pages import read, record, wanted
from tests.redis_server import answering, redis_server

pytest.importorskip("redis")
LAYOUT, OTHER = b"layout of pages.", b"another layout.."
PAGE = 100
PATIENCE = 2.5  # a time-out is that of a client whose time-outs double; and the machine is busy


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture
def tier_of():
    made = []

    def make(url: str, *, layout: bytes = LAYOUT, budget: int | None = None) -> RemoteTier:
        made.append(RemoteTier(RedisStore(url), layout, PAGE, budget))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


@pytest.fixture
def tier(server, tier_of):
    server.ask(b"FLUSHALL")
    tier = tier_of(server.url)
    for at in range(4):
        assert tier.write(record(0, at)) == []
    return tier


def seconds_of(call) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_a_page_that_one_worker_wrote_is_read_by_another(tier, tier_of, server):
    other = tier_of(server.url)
    assert other.holds(wanted(0, 0, 9)) == 9  # as anybody may have written them
    assert read(other, wanted(0, 0, 9)) == [record(0, at) for at in range(4)]
    assert other.keeps(record(0, 2).key)
    assert read(tier_of(server.url, layout=OTHER), wanted(0, 0, 9)) == []


def test_long_runs_come_in_batches(tier, monkeypatch):
    monkeypatch.setattr(remote, "BATCH_PAGES", 3)
    assert read(tier, wanted(0, 0, 4)) == [record(0, at) for at in range(4)]


def test_a_budget_drops_the_oldest_leaf_for_all(server, tier_of):
    server.ask(b"FLUSHALL")
    tier = tier_of(server.url, budget=3 * size_of(record(0, 0)))
    for at in range(4):
        tier.write(record(0, at))
    assert len(read(tier_of(server.url), wanted(0, 0, 4))) == 3
    assert tier.usage() == (3, 3 * size_of(record(0, 0)))


def test_what_another_worker_dropped_may_be_written_again(tier, server):
    server.ask(b"FLUSHALL")
    assert tier.keeps(record(0, 0).key)
    assert read(tier, wanted(0, 0, 4)) == []
    assert not tier.keeps(record(0, 0).key)
    assert tier.write(record(0, 0)) == []
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]


@pytest.mark.parametrize(
    "value", [b"", b"garbage", record(0, 2).payload, b"RTPJKV\x00\x02" + bytes(100)]
)
def test_a_value_that_is_no_page_ends_the_run(tier, value):
    name = tier._name(record(0, 1).key)
    tier._values._client(BASE_S).set(name, value)
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]
    assert read(tier, wanted(0, 1, 2)) == []  # it was taken away
    assert tier.write(record(0, 1)) == []


def test_a_value_of_the_wrong_type_is_no_page(tier):
    client = tier._values._client(BASE_S)
    client.delete(tier._name(record(0, 1).key))
    client.lpush(tier._name(record(0, 1).key), b"a list")
    assert read(tier, wanted(0, 0, 4)) == [record(0, 0)]


def test_forgetting_is_for_everybody(tier, tier_of, server):
    tier.forget([record(0, 2).key])
    assert len(read(tier_of(server.url), wanted(0, 0, 4))) == 2


def test_a_killed_server_opens_the_breaker_and_is_found_again(tier_of, monkeypatch):
    with redis_server() as server:
        tier = tier_of(server.url)
        tier.write(record(0, 0))
        server.kill()
        for _ in range(THRESHOLD):
            assert tier.holds(wanted(0, 0, 1)) == 1
            assert seconds_of(lambda: read(tier, wanted(0, 0, 1))) < PATIENCE * BASE_S
        assert tier.holds(wanted(0, 0, 1)) == 0
        assert tier.keeps(record(0, 1).key)  # of no use to write now
        server.start()
        now_s = time.monotonic()
        monkeypatch.setattr(remote.time, "monotonic", lambda: now_s + FIRST_PAUSE_S)
        assert tier.holds(wanted(0, 0, 1)) == 1
        assert read(tier, wanted(0, 0, 1)) == []  # it came back empty
        assert tier.write(record(0, 0)) == []
        assert read(tier, wanted(0, 0, 1)) == [record(0, 0)]


def test_a_server_that_hangs_costs_one_time_out_each_and_opens_the_breaker(tier, server):
    limit_s = PATIENCE * tier.timeout_s(1)
    with server.stopped():
        for _ in range(THRESHOLD):
            assert seconds_of(lambda: read(tier, wanted(0, 0, 1))) < limit_s
        assert tier.holds(wanted(0, 0, 1)) == 0
        assert seconds_of(lambda: tier.write(record(0, 9))) < 0.05


def test_a_late_answer_is_not_taken_for_the_next(tier, server):
    with server.stopped():
        assert read(tier, wanted(0, 0, 1)) == []
    assert read(tier, wanted(0, 3, 4)) == [record(0, 3)]


def test_a_slow_server_costs_one_time_out(tier_of):
    with answering(b"$-1\r\n", delay_s=0.5) as url:
        tier = tier_of(url)
        for _ in range(THRESHOLD):
            assert seconds_of(lambda: read(tier, wanted(0, 0, 1))) < PATIENCE * BASE_S
        assert tier.holds(wanted(0, 0, 1)) == 0


@pytest.mark.parametrize(
    "answer",
    [b"garbage\r\n", b"*5\r\n", b"*1\r\n:7\r\n", b"$3\r\nabc\r\n", b"*-1\r\n", b"*x\r\n",
     b"\x00\xff\xfe\r\n", b"-ERR no\r\n", b":1\r\n", b"%1\r\n+a\r\n+b\r\n"],
)  # fmt: skip
def test_a_server_that_answers_garbage_opens_the_breaker(tier_of, answer):
    with answering(answer) as url:
        tier = tier_of(url)
        for _ in range(THRESHOLD):
            assert read(tier, wanted(0, 0, 2)) == []
            tier.write(record(0, 0))
        assert tier.holds(wanted(0, 0, 1)) == 0


def test_a_full_server_is_not_written_for_a_while(tier_of, monkeypatch):
    with redis_server("--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as server:
        tier = tier_of(server.url)
        large = record(0, 0, 500_000)
        at = 0
        while tier.write(record(0, at, 500_000)) == []:
            at += 1
            assert at < 10
        assert tier.keeps(record(0, 9).key)
        assert tier.holds(wanted(0, 0, 1)) == 1  # reading goes on, and the breaker is closed
        assert len(read(tier, wanted(0, 0, at))) == at
        now_s = time.monotonic()
        monkeypatch.setattr(remote.time, "monotonic", lambda: now_s + remote.FULL_S)
        assert not tier.keeps(large.key[:-1] + b"x")


def test_a_time_out_grows_with_its_bytes(tier):
    assert tier.timeout_s(1) < tier.timeout_s(1000)
    assert tier.timeout_s(0) == BASE_S
    rate = (1000 - 1) * PAGE / (tier.timeout_s(1000) - tier.timeout_s(1))
    tier._rate = 1.0
    assert tier.timeout_s(1000) == pytest.approx(BASE_S + 1000 * PAGE / remote.SLOWEST_RATE)
    assert rate > remote.SLOWEST_RATE


@pytest.mark.parametrize("url", ["somewhere:6379", "http://127.0.0.1", "redis://host:port/0"])
def test_an_address_that_cannot_be_read_is_refused(url):
    with pytest.raises(InvalidArgument, match="RTPJ-1105 KV_REMOTE_URL_INVALID"):
        RedisStore(url)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(FailedPrecondition, match=r"RTPJ-4110 REDIS_EXTRA_MISSING.*rtp_jax\[redis"):
        RedisStore("redis://127.0.0.1:1/0")
