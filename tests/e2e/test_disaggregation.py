"""Prefill here and decode there: the tokens of one engine, whatever happens on the way."""

import asyncio
import contextlib
import random
import signal
import threading
import time

import grpc
import numpy as np
import pytest

from rtp_jax import SamplingParams
from rtp_jax.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    RtpError,
    Unavailable,
)
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.wire import kv_pb2 as pb
from rtp_jax.wire.kv_pb2_grpc import KvTransferStub
from tests.e2e.pair import Pair, prefill_process, run_through, started_pair, through, until
from tests.engine.workload import Case, cases, run_alone, run_together, small_engine, tokens
from tests.fault_proxy import Fault, FaultProxy
from tests.serving.started import Servers

NOBODY = "127.0.0.1:1"
ONE_PROGRAM = {"deterministic": True, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def pair(tiny_model, program_cache):
    with started_pair(tiny_model, program_cache) as made:
        yield made


def long_cases(count: int, *, seed: int = 0, vocab: int = 440, length: int = 200) -> list[Case]:
    """Make requests with prompts of several pages, every second one seeded."""
    rng = np.random.default_rng(seed)
    return [
        Case(
            rng.integers(3, vocab, length + i % 7).tolist(),
            SamplingParams(max_tokens=6, ignore_eos=True, seed=i, temperature=float(i % 2)),
        )
        for i in range(count)
    ]


def fetched_tokens(pair: Pair, outputs: list) -> int:
    return sum(output.cached_tokens.get("peer", 0) for output in outputs)


def check_tokens(pair: Pair, work: list[Case], addresses, **options) -> list:
    """Run requests through two workers, and alone; the tokens must be the same."""
    outputs = run_through(pair.decode, work, addresses, **options)
    pair.forget()
    assert tokens(outputs) == tokens(run_together(pair.fused, work))
    return outputs


@pytest.mark.capability("prefill and decode pools")
def test_mixed_requests_give_the_tokens_of_one_engine(pair):
    work = cases(26) + long_cases(6)
    outputs = check_tokens(pair, work, [pair.address])
    assert fetched_tokens(pair, outputs) > 1000
    assert pair.prefill.transfer.offers.counts.acked > 10


@pytest.mark.full
def test_two_hundred_mixed_requests(pair):
    work = cases(160, seed=5) + long_cases(40, seed=5)
    for start in range(0, 200, 50):
        check_tokens(pair, work[start : start + 50], [pair.address])


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"kv_dtype": "int8"}], ids=str)
def test_pages_of_other_numbers_travel_too(tiny_model, program_cache, options):
    with started_pair(tiny_model, program_cache, **ONE_PROGRAM, **options) as pair:
        outputs = check_tokens(pair, long_cases(6), [pair.address])
        assert fetched_tokens(pair, outputs) > 6 * 150


def test_what_is_here_already_is_not_fetched_again(pair):
    work = long_cases(2)
    first = run_through(pair.decode, work, [pair.address])
    asked = pair.prefill.transfer.offers.counts.opened
    second = run_through(pair.decode, work, [pair.address])
    assert tokens(first) == tokens(second)
    assert fetched_tokens(pair, second) == 0
    assert pair.prefill.transfer.offers.counts.opened == asked


def test_a_short_prompt_is_computed_here(pair):
    asked = pair.prefill.transfer.offers.counts.opened
    check_tokens(pair, [Case([5, 6, 7], SamplingParams(max_tokens=3, seed=1))], [pair.address])
    assert pair.prefill.transfer.offers.counts.opened == asked


def test_prompts_over_the_wire(pair):
    (case,) = long_cases(1)
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(started(pair.decode))
        client = stack.enter_context(Client(servers.address))
        options = RequestOptions(prefill_at=[NOBODY, pair.address])
        output = client.generate(case.prompt, case.params, options)
        assert output.cached_tokens.get("peer", 0) > 100
        with pytest.raises(InvalidArgument, match="RTPJ-4310 PREFILL_AT_INVALID"):
            client.generate([5], options=RequestOptions(prefill_at=["10.1.1.1:50051"]))
    pair.forget()
    assert tokens([output]) == tokens(run_alone(pair.fused, [case]))


@contextlib.contextmanager
def started(engine):
    servers = Servers()
    try:
        yield servers.start(engine)
    finally:
        servers.stop()


def test_nobody_to_ask_is_no_error(pair):
    outputs = check_tokens(pair, long_cases(4), [NOBODY])
    assert fetched_tokens(pair, outputs) == 0


@pytest.mark.parametrize("kind", ["reset", "truncate", "flip", "delay"])
def test_a_bad_network_changes_no_token(pair, kind):
    fault = Fault(kind=kind, every=4, after=6, delay_s=0.2)
    with FaultProxy(pair.running.server.port, fault) as proxy:
        check_tokens(pair, long_cases(8, length=280), [proxy.address, pair.address])
        assert proxy.applied[kind] > 0


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["reset", "truncate", "flip", "delay"])
def test_a_fault_in_every_sixteenth_chunk_changes_no_token(pair, kind, seed):
    fault = Fault(kind=kind, every=16, after=seed, delay_s=2.0)
    with FaultProxy(pair.running.server.port, fault, seed=seed) as proxy:
        check_tokens(pair, long_cases(12, length=280, seed=seed), [proxy.address])


def check_late_reader(pair: Pair, num_requests: int) -> None:
    """Delay what a reader gets by 2 s, while others use the pages of the pool again and again."""
    work, counts = long_cases(num_requests, length=100), pair.prefill.transfer.offers.counts
    expired = counts.expired
    late = Fault(kind="delay", every=3, after=4, delay_s=2.0)
    with FaultProxy(pair.running.server.port, late) as proxy:
        churn = long_cases(3 * num_requests, seed=1)
        churning = threading.Thread(target=run_together, args=(pair.prefill, churn))
        churning.start()
        outputs = run_through(pair.decode, work, [proxy.address])
        churning.join()
        assert proxy.applied["delay"] > 0
    assert until(lambda: counts.open == 0)
    assert counts.expired > expired
    pair.forget()
    assert tokens(outputs) == tokens(run_together(pair.fused, work))


def test_a_reader_who_is_late_gets_no_page_of_somebody_else(pair, monkeypatch):
    monkeypatch.setattr(pair.prefill.transfer.offers, "lease_s", 0.05)
    check_late_reader(pair, 2)


@pytest.mark.full
def test_a_late_reader_and_a_small_pool(tiny_model, program_cache):
    options = {"num_pages": 24, "transfer_lease_s": 0.05}
    with started_pair(tiny_model, program_cache, **options) as pair:
        check_late_reader(pair, 6)


def test_another_layout_is_refused_and_the_prompt_computed_here(pair, tiny_model, program_cache):
    (case,) = long_cases(1)
    options = {**ONE_PROGRAM, "kv_dtype": "int8", "role": "decode"}
    with small_engine(tiny_model, program_cache, **options) as other:
        (output,) = run_through(other, [case], [pair.address])
        assert output.cached_tokens.get("peer", 0) == 0
        assert pair.prefill.transfer.offers.counts.open == 0
        other.reset_prefix_cache()
        assert tokens([output]) == tokens(run_alone(other, [case]))


def test_a_worker_does_not_ask_itself(pair):
    began = time.monotonic()
    outputs = run_through(pair.prefill, long_cases(3), [pair.address])
    assert time.monotonic() - began < 5
    assert fetched_tokens(pair, outputs) == 0
    pair.forget()
    assert tokens(outputs) == tokens(run_together(pair.fused, long_cases(3)))


def test_two_workers_that_ask_each_other_wait_for_nobody(pair):
    """Both want the same pages of each other at the same time, and both have parked them."""
    work, began = long_cases(6, seed=4, length=250), time.monotonic()
    both: dict[str, list] = {}

    def run(name, engine, address) -> None:
        both[name] = tokens(run_through(engine, work, [address]))

    pair.decode.transfer.set_role("both")
    try:
        with started(pair.decode) as running:
            sides = {"a": (pair.prefill, running.address), "b": (pair.decode, pair.address)}
            threads = [threading.Thread(target=run, args=(k, *side)) for k, side in sides.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert time.monotonic() - began < 15
            assert until(lambda: pair.decode.transfer.offers.counts.open == 0)
    finally:
        pair.decode.transfer.set_role("decode")
    pair.forget()
    assert both["a"] == both["b"] == tokens(run_together(pair.fused, work))


def test_roles_change_while_requests_run(pair):
    work = long_cases(12)
    try:
        timer = threading.Timer(0.05, pair.prefill.transfer.set_role, ["decode"])
        timer.start()
        outputs = run_through(pair.decode, work, [pair.address])
        timer.join()
        counts = pair.prefill.transfer.offers.counts
        asked = counts.opened
        (more,) = run_through(pair.decode, long_cases(1, seed=9), [pair.address])
        assert (counts.opened, more.cached_tokens.get("peer", 0)) == (asked, 0)
    finally:
        assert pair.prefill.transfer.set_role("both") == "decode"
    pair.forget()
    assert tokens(outputs) == tokens(run_together(pair.fused, work))


def test_a_prefill_worker_refuses_to_generate(pair):
    with started(pair.prefill) as running, Client(running.address) as client:
        assert pair.prefill.transfer.set_role("prefill") == "both"
        try:
            for call in (lambda: client.generate([5]), lambda: client.score([5], [[6]])):
                with pytest.raises(Unavailable, match="RTPJ-4313 ROLE_REFUSES") as refused:
                    call()
                assert refused.value.retry_after_s
        finally:
            pair.prefill.transfer.set_role("both")
    with pytest.raises(InvalidArgument, match="RTPJ-4311 ROLE_INVALID"):
        pair.prefill.transfer.set_role("encode")


def test_an_engine_without_a_role_keeps_its_pages(engine_without_role):
    with pytest.raises(FailedPrecondition, match="RTPJ-4312 PAGES_STAY_HERE"):
        run_through(engine_without_role, long_cases(1), [NOBODY])


@pytest.fixture
def engine_without_role(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache) as engine:
        yield engine


def test_a_deadline_ends_a_request_that_waits_for_pages(pair):
    with FaultProxy(pair.running.server.port) as proxy:
        proxy.stopped = True
        began = time.monotonic()
        (ended,) = run_through(pair.decode, long_cases(1), [proxy.address], deadline_s=began + 0.3)
        assert time.monotonic() - began < 1.3
        proxy.stopped = False
    # Either it was computed here in time, or it ended with the typed error.
    assert not isinstance(ended, RtpError) or isinstance(ended, DeadlineExceeded)


def cancel_at(pair: Pair, after_s: float, way: str, seed: int) -> None:
    """Give a request up after a while; both workers must be idle soon, neighbours untouched."""
    victim, neighbour = long_cases(2, seed=seed, length=250)
    name = f"victim-{way}-{seed}"

    async def run() -> list:
        async def give_up() -> None:
            options = {"request_id": name}
            if way == "deadline":
                options["deadline_s"] = time.monotonic() + max(after_s, 1e-3)
            task = asyncio.ensure_future(through(pair.decode, victim, [pair.address], **options))
            await asyncio.sleep(after_s)
            if way == "abort":
                pair.decode.abort(name)
            elif way == "close":
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RtpError):
                await task

        kept = asyncio.ensure_future(through(pair.decode, neighbour, [pair.address]))
        await give_up()
        return [await kept]

    outputs = asyncio.run(run())
    pair.check_idle()
    pair.forget()
    assert tokens(outputs) == tokens(run_alone(pair.fused, [neighbour]))


@pytest.mark.parametrize("way", ["abort", "close", "deadline"])
def test_a_cancelled_request_leaves_nothing(pair, way):
    for number, after_s in enumerate((0.0, 0.002, 0.005, 0.01, 0.02, 0.04)):
        cancel_at(pair, after_s, way, number)


@pytest.mark.full
@pytest.mark.parametrize("way", ["abort", "close", "deadline"])
@pytest.mark.parametrize("seed", range(20))
def test_a_request_cancelled_at_any_time_leaves_nothing(pair, way, seed):
    rng = random.Random(seed)
    for _ in range(5):
        cancel_at(pair, rng.random() * 0.08, way, seed)


def test_a_decode_worker_that_vanishes_is_forgotten_with_its_lease(pair):
    """As a killed one does, it asks, pulls a little, and is never heard of again."""
    counts = pair.prefill.transfer.offers.counts
    layout, expired = pair.prefill.transfer.layout, counts.expired
    ids = np.random.default_rng(0).integers(3, 440, 18 * layout.page_size).tolist()
    ask = pb.OfferRequest(token_ids=ids, deadline_s=60.0, fingerprint=layout.fingerprint)
    with grpc.insecure_channel(pair.address) as channel:
        stub = KvTransferStub(channel)
        offer = stub.Offer(ask, timeout=5)
        pull = pb.PullRequest(offer_id=offer.offer_id, epoch=offer.epoch, wait_s=5.0)
        assert next(stub.Pull(pull, timeout=5)).pages
    with Client(pair.address) as client:
        assert client.loads().num_offers == 1
    began = time.monotonic()
    assert until(lambda: counts.open == 0)
    assert time.monotonic() - began < offer.lease_s + 1
    assert counts.expired == expired + 1
    assert pair.prefill.loads().num_offers == 0


def test_a_worker_that_stops_or_dies_costs_time_only(pair, tiny_model, program_cache):
    with prefill_process(tiny_model, program_cache) as (process, address):
        assert fetched_tokens(pair, check_tokens(pair, long_cases(3), [address])) > 400
        process.send_signal(signal.SIGSTOP)
        stopped = check_tokens(pair, long_cases(3, seed=1), [address])
        process.send_signal(signal.SIGCONT)
        assert fetched_tokens(pair, stopped) == 0
        time.sleep(1.2)  # it is left alone for a while
        assert fetched_tokens(pair, check_tokens(pair, long_cases(2, seed=2), [address])) > 200
        timer = threading.Timer(0.02, process.kill)
        timer.start()
        check_tokens(pair, long_cases(8, seed=3, length=280), [address, pair.address])
        timer.join()


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_at_any_time_costs_time_only(pair, tiny_model, program_cache, seed):
    with prefill_process(tiny_model, program_cache) as (process, address):
        timer = threading.Timer(random.Random(seed).random() * 0.3, process.kill)
        timer.start()
        check_tokens(pair, long_cases(16, seed=seed, length=280), [address, pair.address])
        timer.join()
    check_tokens(pair, long_cases(1, seed=seed), [address])
