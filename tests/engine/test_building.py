"""An engine that cannot be built says so early, and leaves nothing behind."""

import re
import threading

import pytest
from prometheus_client import generate_latest

from rtp_jax.cache.page_events import PageEvents
from rtp_jax.config import EngineConfig
from rtp_jax.engine import build
from rtp_jax.engine.direct import check_room
from rtp_jax.engine.kv_tiers import Below
from rtp_jax.engine.transfer import Transfer
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.metrics import Metrics
from rtp_jax.runner.direct_server import JaxEnd
from tests.engine.workload import small_engine
from tests.transfer.direct_ends import FakeEnd, direct
from tests.transfer.served import LAYOUT, chain_of, record_at

DIRECT = {"role": "both", "kv_transport": "jax"}


class Refused(Exception):
    """What a test has happen."""


def fails(*_: object, **__: object) -> None:
    raise Refused


def test_an_address_that_is_not_ours_is_refused_before_anything_is_loaded(
    tiny_model, program_cache, monkeypatch
):
    monkeypatch.setattr(build, "start", fails)
    with pytest.raises(Refused):  # the config is sound without it
        small_engine(tiny_model, program_cache, **DIRECT)
    with pytest.raises(FailedPrecondition, match="RTPJ-4314 KV_TRANSPORT_UNAVAILABLE"):
        small_engine(tiny_model, program_cache, **DIRECT, kv_transport_host="203.0.113.7")


def test_room_for_less_than_a_page_is_refused():
    small = EngineConfig.from_options(**DIRECT, kv_transport_bytes=99)
    check_room(small, 99)
    with pytest.raises(InvalidArgument, match="RTPJ-4316 KV_TRANSPORT_TOO_SMALL") as raised:
        check_room(small, 100)
    assert raised.value.field == "kv_transport_bytes"
    assert "kv_transport_bytes=99, and a page has 100 bytes" in str(raised.value)
    check_room(EngineConfig.from_options(kv_transport_bytes=99), 100)  # which nobody uses


def test_an_engine_checks_that_room_with_its_own_pages(tiny_model, program_cache, monkeypatch):
    monkeypatch.setattr(build, "Transfer", fails)  # which would come next
    with pytest.raises(InvalidArgument, match="RTPJ-4316"):
        small_engine(tiny_model, program_cache, **DIRECT, kv_transport_bytes=1)


def test_what_had_no_room_is_counted():
    end, metrics = direct(FakeEnd(), max_bytes=1), Metrics()
    below = Below(LAYOUT, None, PageEvents())
    transfer = Transfer(EngineConfig.from_options(**DIRECT), below, "life", None, metrics, end)
    assert end.giving.frame(0, [record_at(chain_of(range(4)), 0)]) is None
    transfer.show_counts()
    scraped = generate_latest(metrics.registry).decode()
    assert re.search(r"rtp_jax:direct_refused_total(\{.*\})? 1.0", scraped)
    transfer.close()


@pytest.mark.parametrize("late", ["start", "Transfer"])
def test_what_fails_late_leaves_no_threads_and_no_transport(
    tiny_model, program_cache, monkeypatch, late
):
    closed, close = [], JaxEnd.close
    monkeypatch.setattr(JaxEnd, "close", lambda self: (closed.append(self), close(self)))
    monkeypatch.setattr(build, late, fails)
    before = set(threading.enumerate())
    with pytest.raises(Refused):
        small_engine(tiny_model, program_cache, **DIRECT, kv_host_bytes=1 << 20)
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in left if name.startswith("rtp-")]
    assert len(closed) == 1
