"""Engines on several devices give the tokens of one on one device; `tests/parallel` runs this."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax
import pytest

from rtp_jax import Engine, SamplingParams
from rtp_jax.outputs import RequestOutput
from tests.engine.likeness import check_like, check_like_on_average, with_logprobs
from tests.engine.workload import (
    Case,
    cases,
    check_idle,
    run_together,
    small_engine,
    tokens,
)

MODEL = "rtp-tiny"  # 8 query heads, 4 KV heads
ONE_PROGRAM = {"deterministic": True, "max_num_seqs": 8}
# So few pages that sequences are preempted, and host memory for what the device has no room for.
CROWDED = {"num_pages": 30, "kv_host_bytes": 16 << 20, "kv_load": "always", "max_prefill_chunk": 32}
EXACT = [{"quantization": "int4", "head_quantization": "int8"}, {"quantization": "int8"}]
COARSE_KV = [{"kv_dtype": "int8"}, {"kv_dtype": "fp8"}]


def work() -> list[Case]:
    """Requests of every kind, and some that start small and then outgrow the pages."""
    growing = SamplingParams(max_tokens=90, ignore_eos=True, temperature=1.0)
    long = [
        Case(case.prompt[:20], dataclasses.replace(growing, seed=seed))
        for seed, case in enumerate(cases(8, vocab=2000, seed=1))
    ]
    return cases(26, vocab=2000) + long


def engine(cache, size: int, **options: object):
    return small_engine(MODEL, cache, **ONE_PROGRAM, tensor_parallel_size=size, **options)


@pytest.fixture(scope="module")
def alone(program_cache):
    """What one device answers, with room for everything."""
    with engine(program_cache, 1) as one:
        return tokens(run_together(one, work()))


@pytest.mark.parametrize("size", [*(pytest.param(n, marks=pytest.mark.full) for n in (2, 4)), 8])
def test_tokens_are_those_of_one_device(alone, program_cache, size):
    with engine(program_cache, size, **CROWDED) as several:
        runner = several._parts.runner
        assert several.info.tensor_parallel_size == size
        pages = runner._state.kv[0].pages
        assert {len(part.data.devices()) for part in pages.addressable_shards} == {1}
        assert {part.data.shape[3] for part in pages.addressable_shards} == {max(4 // size, 1)}
        assert runner.array_bytes == pytest.approx(several._parts.memory.array_bytes, rel=0.01)
        assert tokens(run_together(several, work())) == alone
        counters = several._parts.scheduler.counters
        assert counters.preemptions > 0
        assert counters.chunks > 0
        outputs = run_together(several, work())
        assert tokens(outputs) == alone
        assert counters.hit_tokens > 500
        assert sum(output.cached_tokens.get("host", 0) for output in outputs) > 100
        check_idle(several)


def answers(cache, options: dict, sizes: Sequence[int]) -> list[list[RequestOutput]]:
    """Give what engines of several sizes answer."""
    given = []
    for size in sizes:
        with engine(cache, size, **options) as one:
            given.append(run_together(one, with_logprobs(work())))
            check_idle(one)
    return given


@pytest.mark.full
@pytest.mark.parametrize("options", EXACT, ids=str)
def test_encoded_weights_are_those_of_one_device(program_cache, options):
    one, four = answers(program_cache, {**options, "native": "off"}, (1, 4))
    # Float32 sums in two orders: a draw in some thousand falls on the border of two tokens.
    check_like(four, one, moved=1e-3, diverged=0.001)


@pytest.mark.full
@pytest.mark.parametrize("options", COARSE_KV, ids=str)
def test_coarse_pages_are_like_those_of_one_device(program_cache, options):
    one, two = answers(program_cache, options, (1, 2))
    check_like(two, one)


def check_like_int4(outputs: Sequence[RequestOutput], wanted: Sequence[RequestOutput]) -> None:
    """Its groups lie within a device: 0.8 % of tokens part, and 3 % with a wrong page."""
    check_like(outputs, wanted, diverged=0.015)


def spoil_most_used_page(several: Engine) -> None:
    """Give the values of another page to the one behind which most pages are."""
    runner, index = several._parts.runner, several._parts.scheduler._ledger.index
    entries = {each.key: each for each in map(index.entry, filter(index.__contains__, range(400)))}
    users: Counter[int] = Counter()
    for key in entries:
        while key in entries:
            users[entries[key].page] += 1
            key = entries[key].parent
    (spoilt, _), *_, (other, _) = users.most_common()
    (kv,) = runner._state.kv
    pages = kv.pages.at[spoilt, :, 1].set(kv.pages[other, :, 1])
    pages = jax.device_put(pages, kv.pages.sharding)
    runner._state = runner._state._replace(kv=(kv._replace(pages=pages),))


@pytest.mark.full
@pytest.mark.parametrize(
    ("quantization", "check"), [("int4", check_like_int4), ("fp8", check_like_on_average)]
)
def test_coarse_activations_are_like_those_of_one_device(program_cache, quantization, check):
    """... and one page with values of another would show."""
    wanted = with_logprobs(work())
    with engine(program_cache, 1, quantization=quantization) as one:
        alone = run_together(one, wanted)
    with engine(program_cache, 2, quantization=quantization) as two:
        check(run_together(two, wanted), alone)
        check_idle(two)
        spoil_most_used_page(two)
        with pytest.raises(AssertionError):
            check(run_together(two, wanted), alone)


@pytest.mark.full
def test_bfloat16_is_the_same_to_the_bit_whoever_shares_a_batch(program_cache):
    with engine(program_cache, 4, dtype="bfloat16") as several:
        together = tokens(run_together(several, work()))
        several.reset_prefix_cache()
        backwards = tokens(run_together(several, work()[::-1]))
        assert backwards[::-1] == together


@pytest.mark.full
def test_another_start_finds_programs_and_pages(alone, program_cache, tmp_path):
    """The pages of eight devices are found again, and by an engine on one device as well."""
    options = {**CROWDED, "kv_host_bytes": 0, "kv_disk_path": str(tmp_path), "kv_write_hits": 0}
    for size, finds_programs, finds_pages in ((8, False, False), (8, True, True), (1, False, True)):
        with engine(program_cache, size, **options) as one:
            report = one._parts.runner.compile_report
            assert not finds_programs or (report.compiled == [] and len(report.loaded) > 3)
            outputs = run_together(one, work())
            assert tokens(outputs) == alone
            found = [output.cached_tokens.get("disk", 0) for output in outputs[:1]]
            assert (found[0] > 0) == finds_pages
