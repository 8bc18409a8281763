"""Pages over jax's transfer server: the tokens of one engine, whatever becomes of the transport."""

import re
import signal
import threading
import time

import pytest
from prometheus_client import generate_latest

from rtp_jax.transfer import direct_take
from rtp_jax.transfer.direct_take import Taking
from tests.e2e.pair import Pair, prefill_process, started_pair, until
from tests.e2e.test_disaggregation import ONE_PROGRAM, check_tokens, fetched_tokens, long_cases
from tests.engine.workload import cases, small_engine

DIRECT = {"kv_transport": "jax"}
ELSEWHERE = {"kv_transport_host": "127.0.0.2"}  # where nobody serves


@pytest.fixture(scope="module")
def pair(tiny_model, program_cache):
    with started_pair(tiny_model, program_cache, of_prefill=ELSEWHERE, **DIRECT) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_waits(request, forgotten):
    """End each test that uses the pair with nothing that was given and not fetched."""
    yield
    if "pair" in request.fixturenames:
        pair = request.getfixturevalue("pair")
        assert until(lambda: pair.prefill.transfer.direct.giving.counts.bytes == 0)
        assert taking_of(pair).counts.stuck == 0
        assert pair.decode.metrics.compile_after_ready == 0


def taking_of(pair: Pair) -> Taking:
    return pair.decode.transfer.direct.taking


def check_direct(pair: Pair, work: list) -> None:
    """Run requests; the tokens are right, and every page that was fetched came directly."""
    before = pair.decode.metrics.direct_pages
    outputs = check_tokens(pair, work, [pair.address])
    pages = fetched_tokens(pair, outputs) // pair.prefill.transfer.layout.page_size
    assert pair.decode.metrics.direct_pages - before == pages > 10


@pytest.mark.capability("prefill and decode pools")
def test_mixed_requests_give_the_tokens_of_one_engine(pair):
    check_direct(pair, cases(10, seed=2) + long_cases(4))
    counts = pair.prefill.transfer.direct.giving.counts
    assert until(lambda: counts.bytes == 0)
    assert counts.fetched == counts.given > 0
    assert taking_of(pair).counts.failed == 0


@pytest.mark.full
def test_two_hundred_mixed_requests(pair):
    work, before = cases(160, seed=5) + long_cases(40, seed=5), pair.decode.metrics.direct_pages
    for start in range(0, 200, 50):
        check_tokens(pair, work[start : start + 50], [pair.address])
    assert pair.decode.metrics.direct_pages - before > 100
    assert taking_of(pair).counts.failed == 0


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"kv_dtype": "int8"}], ids=str)
def test_pages_of_other_numbers_travel_too(tiny_model, program_cache, options):
    with started_pair(tiny_model, program_cache, **ONE_PROGRAM, **DIRECT, **options) as pair:
        check_direct(pair, long_cases(6))


def test_a_worker_that_knows_grpc_alone_is_asked_for_frames(pair, tiny_model, program_cache):
    with small_engine(tiny_model, program_cache, role="decode", transfer_min_tokens=0) as decode:
        alone = Pair(pair.prefill, decode, pair.running)
        given = pair.prefill.transfer.direct.giving.counts.given
        outputs = check_tokens(alone, long_cases(2), [pair.address])
        assert fetched_tokens(alone, outputs) > 200
        assert decode.metrics.direct_pages == 0
        assert pair.prefill.transfer.direct.giving.counts.given == given


@pytest.mark.full
def test_a_worker_that_stops_dies_or_is_born_again_costs_time_only(
    pair, tiny_model, program_cache, monkeypatch
):
    """Whatever becomes of the direct transport; once all is over, pages come directly again."""
    monkeypatch.setattr(direct_take, "SUSPECT_S", 0.5)
    metrics = pair.decode.metrics

    def direct_pages(address: str, seed: int, **options) -> int:
        before = metrics.direct_pages
        outputs = check_tokens(pair, long_cases(2, seed=seed, **options), [address])
        direct = metrics.direct_pages - before
        assert direct <= fetched_tokens(pair, outputs) // pair.prefill.transfer.layout.page_size
        return direct

    with prefill_process(tiny_model, program_cache, **DIRECT) as (process, address):
        assert direct_pages(address, 0) > 10
        timer = threading.Timer(0.02, process.send_signal, [signal.SIGSTOP])
        timer.start()  # in the middle of something, which may be a direct pull
        began = time.monotonic()
        direct_pages(address, 1, length=280)
        assert time.monotonic() - began < 15
        timer.join()
        process.send_signal(signal.SIGCONT)
        assert until(lambda: direct_pages(address, 2) > 10)
        timer = threading.Timer(0.02, process.kill)
        timer.start()
        direct_pages(address, 3, length=280)
        timer.join()
        port = address.rpartition(":")[2]
        process.wait()
    with prefill_process(tiny_model, program_cache, port=port, **DIRECT) as (_, address):
        assert until(lambda: direct_pages(address, 4) > 10)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
def test_a_worker_killed_at_any_time_costs_time_only(pair, tiny_model, program_cache, seed):
    before = pair.decode.metrics.direct_pages
    with prefill_process(tiny_model, program_cache, **DIRECT, **ELSEWHERE) as (process, address):
        timer = threading.Timer(0.03 * seed, process.kill)
        timer.start()
        check_tokens(pair, long_cases(16, seed=seed, length=280), [address, pair.address])
        timer.join()
    assert pair.decode.metrics.direct_pages > before
    check_tokens(pair, long_cases(1, seed=seed), [address])


def test_pulls_that_cannot_be_ended_retire_the_worker(tiny_model, program_cache, monkeypatch):
    """The tokens are right, and the watchdog of the process is told."""
    free = threading.Event()

    def deaf(self, array_id: int, num_bytes: int, timeout_s: float) -> memoryview:
        free.wait(60)
        return memoryview(bytes(num_bytes))

    monkeypatch.setattr("rtp_jax.runner.direct_server.JaxLink.pull", deaf)
    try:
        options = {**DIRECT, "kv_transport_stuck": 1}
        with started_pair(tiny_model, program_cache, **options) as pair:
            check_tokens(pair, long_cases(1), [pair.address])
            assert until(lambda: pair.decode.transfer.retires is not None)
            assert "RTPJ-4315 DIRECT_PULLS_STUCK" in pair.decode.transfer.retires
            scraped = generate_latest(pair.decode.metrics.registry).decode()
            assert re.search(r"rtp_jax:direct_stuck\{.*\} 1.0", scraped)
            assert re.search(r"rtp_jax:direct_failed_total\{.*\} 1.0", scraped)
            assert pair.decode.metrics.direct_stuck_bytes > 0
            assert pair.prefill.transfer.retires is None
    finally:
        free.set()
