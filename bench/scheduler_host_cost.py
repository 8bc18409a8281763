"""What does the scheduler cost the host in each step?

    python bench/scheduler_host_cost.py

Between two steps the host schedules one and commits another; if that takes longer than the device
computes, the device waits.  Prints microseconds per step for sequences that decode, one step ahead,
without a runner: the median of many steps, in CPU time, so that neighbours do not count.  Behind
the last of them wait 100 and then 10,000 requests, which must not make a step dearer.
"""

import argparse
import platform
import statistics
import time

import numpy as np

from rtp_jax.config import SchedulerConfig
from rtp_jax.request import Request, StepPlan, StepResult
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.scheduler import Scheduler

PROMPT, OUTPUT, PAGE_SIZE = 512, 1024, 16
CASES = ((1, 0), (16, 0), (64, 0), (256, 0), (64, 100), (64, 10_000))  # running, waiting
COLUMNS = ("schedule us", "commit us", "both us", "p99 us")
HEADER = f"{'sequences':>10}{'waiting':>10}" + "".join(f"{name:>14}" for name in COLUMNS)


def main(num_steps: int) -> None:
    """Print one row for each number of sequences."""
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"{PROMPT} prompt tokens, pages of {PAGE_SIZE}, {num_steps} decode steps\n{HEADER}")
    for num_sequences, num_waiting in CASES:
        schedule, commit = measure(num_sequences, num_waiting, num_steps)
        both = [sum(pair) for pair in zip(schedule, commit, strict=True)]
        p99 = sorted(both)[len(both) * 99 // 100]
        medians = [statistics.median(times) * 1e6 for times in (schedule, commit, both)]
        print(
            f"{num_sequences:>10}{num_waiting:>10}"
            + "".join(f"{us:>14.0f}" for us in (*medians, p99 * 1e6))
        )


def measure(
    num_sequences: int, num_waiting: int, num_steps: int
) -> tuple[list[float], list[float]]:
    """Return seconds of each schedule and each commit while all sequences decode."""
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=num_sequences,
            max_num_batched_tokens=8192,
            max_waiting=num_sequences + num_waiting,
        ),
        num_pages=num_sequences * (PROMPT + OUTPUT) // PAGE_SIZE + 1,
        page_size=PAGE_SIZE,
        max_model_len=PROMPT + OUTPUT,
        vocab_size=32_000,
        page_key=b"key",
        model_epoch="weights",
        kv_scheme="float32",
        prefix_caching=True,
        max_logit_rows=num_sequences,
    )
    for number in range(num_sequences + num_waiting):
        scheduler.add(request(number), 0.0)
    in_flight: StepPlan | None = None
    while in_flight is None or any(row.count > 1 for row in in_flight.rows):
        in_flight, _, _ = turn(scheduler, in_flight)
    times = []
    for _ in range(num_steps):
        in_flight, *seconds = turn(scheduler, in_flight)
        times.append(seconds)
    assert len(in_flight.rows) == num_sequences, "requests that wait were admitted"
    schedule, commit = zip(*times, strict=True)
    return list(schedule), list(commit)


def turn(scheduler: Scheduler, in_flight: StepPlan | None) -> tuple[StepPlan, float, float]:
    """Schedule a step, then commit the one before it."""
    began = time.thread_time()
    plan = scheduler.schedule(0.0)
    scheduled = time.thread_time()
    assert plan is not None
    if in_flight is None:
        return plan, scheduled - began, 0.0
    result = StepResult(np.full(in_flight.num_logit_rows, in_flight.number % 1000, np.int32))
    received = time.thread_time()
    scheduler.commit(in_flight, result, 0.0)
    return plan, scheduled - began, time.thread_time() - received


def request(number: int) -> Request:
    """Make a request with a prompt of its own."""
    prompt = tuple((number * 31 + i * 7) % 32_000 for i in range(PROMPT))
    params = SamplingParams(max_tokens=OUTPUT)
    return Request(id=str(number), prompt_token_ids=prompt, params=params, max_tokens=OUTPUT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
