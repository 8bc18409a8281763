"""The engine under load for longer than a commit can wait: `make test-full` and `make soak`.

Every request ends, neighbours of what is cut short keep their tokens, nothing leaks, and the memory
of the process stops growing.
"""

import asyncio
import dataclasses
import random
import time
from pathlib import Path

import pytest

from rtp_jax import Engine
from rtp_jax.errors import DeadlineExceeded
from tests.engine.workload import Case, cases, check_idle, run_together, small_engine, tokens

SOAK_S = 30 * 60
WARM_UP_S = 5 * 60
MOST_GROWTH_PER_MINUTE = 2**20  # bytes


def resident_bytes() -> int:
    """Return the memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def one_request(engine: Engine, case: Case, rng: random.Random) -> list[int] | None:
    """Run a request; one in five is cut short, by its reader, an abort or a deadline."""
    fate = rng.choice(["leave", "abort", "expire"]) if rng.random() < 0.2 else "finish"
    deadline_s = time.monotonic() + rng.random() * 0.1 if fate == "expire" else None
    name = f"r{rng.getrandbits(64):x}"
    outputs = engine.stream_async(case.prompt, case.params, request_id=name, deadline_s=deadline_s)
    last, seen = None, 0
    async for output in outputs:
        last, seen = output, seen + 1
        if fate == "leave" and seen > 2:
            await outputs.aclose()
            return None
        if fate == "abort" and seen > 2:
            engine.abort(name)
    assert last is not None
    if last.error is not None:
        assert isinstance(last.error, DeadlineExceeded)
    cut = last.error is not None or last.outputs[0].finish_reason == "abort"
    return None if cut else last.outputs[0].token_ids


async def one_round(engine: Engine, work: list[Case], expected: list, rng: random.Random) -> int:
    """Run all requests at once; return how many came to their own end, with the right tokens."""
    results = await asyncio.gather(*(one_request(engine, case, rng) for case in work))
    finished = [(i, ids) for i, ids in enumerate(results) if ids is not None]
    for i, ids in finished:
        assert ids == expected[i][0]
    return len(finished)


def churn(engine: Engine, seconds: float, seed: int) -> tuple[int, list[tuple[float, int]]]:
    """Run rounds for a while; return requests finished, and memory over time."""
    work = [
        Case(case.prompt[:40], dataclasses.replace(case.params, n=1, max_tokens=90))
        for case in cases(60, seed=seed)
    ]
    expected = tokens(run_together(engine, work))
    rng, began = random.Random(seed), time.monotonic()
    finished, memory = 0, []
    while (now := time.monotonic() - began) < seconds:
        finished += asyncio.run(one_round(engine, work, expected, rng))
        memory.append((now, resident_bytes()))
    return finished, memory


@pytest.mark.full
@pytest.mark.timeout(600)
def test_two_minutes_of_churn(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache, num_pages=30) as engine:
        finished, _ = churn(engine, 120, seed=5)
        assert finished > 500
        assert engine._parts.scheduler.counters.preemptions > 0
        check_idle(engine)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_two_engines_share_a_folder_of_programs(tiny_model, program_cache):
    small_engine(tiny_model, program_cache).close()
    for _ in range(10):
        first = small_engine(tiny_model, program_cache)
        second = small_engine(tiny_model, program_cache)
        with first, second:
            assert first.metrics.compiles == second.metrics.compiles == 0
            work = cases(10)
            assert tokens(run_together(first, work)) == tokens(run_together(second, work))


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 600)
def test_memory_stops_growing(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache, num_pages=30) as engine:
        finished, memory = churn(engine, SOAK_S, seed=7)
        check_idle(engine)
    warm = [(at, size) for at, size in memory if at > WARM_UP_S]
    minutes = (warm[-1][0] - warm[0][0]) / 60
    growth = (warm[-1][1] - warm[0][1]) / minutes
    print(f"{finished} requests finished, memory grew {growth / 2**20:.3f} MiB a minute")
    assert finished > 10_000
    assert growth < MOST_GROWTH_PER_MINUTE
