"""How soon do requests of a real service get their first token, policy by policy?

    python -m bench.routing TRACE --json bench/results/routing.json

TRACE is a file of requests as `rtp-jax bench --trace` reads it (docs/benchmarks.md).  Lengths are
scaled, so that a block of 512 tokens becomes a page of 16, and so is time; the order of requests
and which prompts share a prefix stay.  Workers are simulated (`rtp_jax/router/simulator.py`), with
step times fitted to what Qwen3-0.6B took on two cores (`bench/results/`).

Load 1 is what round-robin gets through when all requests come at once.  Policies were tuned on the
first third of the trace; each third has its own rows.  "ideal" is the reuse of one worker that
never forgets; `balance` and `reuse` are the default policy without eyes for pages, and for load.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.record import write_record
from rtp_jax.benchmark.trace import Trace, read_trace
from rtp_jax.router.facts import PageHashing, Role, StepSample, WorkerFacts
from rtp_jax.router.policies import TtftSettings
from rtp_jax.router.predictor import StepFit, Terms
from rtp_jax.router.router import Router
from rtp_jax.router.settings import RouterSettings
from rtp_jax.router.simulated_worker import SimulatedWorker
from rtp_jax.router.simulator import (
    Network,
    Served,
    SimulatedRequest,
    Simulation,
    percentile,
)

PAGE_SIZE = 16
LENGTH_SCALE = PAGE_SIZE / 512
HASHING = PageHashing(b"", "simulated", "bfloat16", PAGE_SIZE)
RESULTS = Path(__file__).parent / "results"
BUDGET = 512  # tokens of a step
MAX_TOKENS = 128  # what every request asks for at most: nobody is told how long an output gets
NUM_PARTS = 3
TTFT = TtftSettings()
POLICIES: dict[str, tuple[str, TtftSettings]] = {
    "round_robin": ("round_robin", TTFT),
    "least_tokens": ("least_tokens", TTFT),
    "affinity": ("affinity", TTFT),
    "ttft": ("ttft", TTFT),
    "ttft: balance": ("ttft", replace(TTFT, reuse=False)),
    "ttft: reuse": ("ttft", replace(TTFT, balance=False)),
}
COLUMNS = ("load", "policy", "part", "ttft_p50_s", "ttft_p95_s", "reused", "reused_per_request")


def main(options: argparse.Namespace) -> None:
    """Print and keep one row for each load, policy and part of the trace."""
    trace = read_trace(
        options.trace, most=options.requests, length_scale=LENGTH_SCALE, time_scale=1.0
    )
    fit = measured_fit()
    print("step seconds = {:.3g} + {:.3g} prefill + {:.3g} decoding + {:.3g} context".format(*fit))
    at_once = replay(trace, fit, options, "round_robin", TTFT, time_scale=0.0)
    saturated_s = max(served.ended_s for served in at_once)
    trace_s = max(line.at_s or 0.0 for line in trace.lines)
    print(f"round-robin serves all of them in {saturated_s:.1f} s when they come at once")
    rows = []
    for load in options.loads:
        for name in options.policies:
            policy, settings = POLICIES[name]
            scale = saturated_s / load / trace_s
            began_s = time.perf_counter()
            served = replay(trace, fit, options, policy, settings, time_scale=scale)
            rows += parts_of(load, name, served)
            print(f"# {name} at {load:g}: {time.perf_counter() - began_s:.1f} s", flush=True)
    rows += ideal_of(trace)
    print("".join(f"{name:>20}" for name in COLUMNS))
    for row in rows:
        cells = [row[name] for name in COLUMNS]
        print("".join(f"{c:>20.4g}" if isinstance(c, float) else f"{c or '':>20}" for c in cells))
    if options.json:
        figures = {
            "workers": options.workers,
            "pages": options.pages,
            "fit": fit,
            "saturated_s": saturated_s,
            "rows": rows,
        }
        write_record(options.json, "routing", (), figures)


def replay(
    trace: Trace,
    fit: Terms,
    options: argparse.Namespace,
    policy: str,
    settings: TtftSettings,
    *,
    time_scale: float,
) -> list[Served]:
    """Run the trace once."""
    waiting = len(trace.lines)
    router = Router(RouterSettings(policy=policy, ttft=settings, max_waiting=waiting))
    workers = [
        SimulatedWorker(facts(i, options.pages), fit, seed=i) for i in range(options.workers)
    ]
    simulation = Simulation(router, workers, requests_of(trace, time_scale), network=Network())
    return simulation.run().served


def facts(number: int, num_pages: int) -> WorkerFacts:
    """Describe one worker: KV of 2048 pages is what 4 GiB hold of Qwen3-0.6B."""
    return WorkerFacts(
        id=f"w{number}",
        address="",
        epoch="1",
        role=Role.BOTH,
        hashing=HASHING,
        num_pages=num_pages,
        max_num_seqs=16,
        max_num_batched_tokens=BUDGET,
        max_model_len=1 << 20,
    )


def requests_of(trace: Trace, time_scale: float) -> list[SimulatedRequest]:
    """Make requests of the lines; a block's id stands for all tokens up to its end."""
    requests = []
    for number, line in enumerate(trace.lines):
        num_tokens = line.num_prompt_tokens or 1
        full = line.hash_ids[: num_tokens // PAGE_SIZE]
        requests.append(
            SimulatedRequest(
                id=f"r{number}",
                at_s=(line.at_s or 0.0) * time_scale,
                keys=tuple(hash_id.to_bytes(16, "little") for hash_id in full),
                num_tokens=num_tokens,
                num_output_tokens=min(line.num_output_tokens or 1, MAX_TOKENS),
                max_tokens=MAX_TOKENS,
            )
        )
    return requests


def parts_of(load: float, policy: str, served: Sequence[Served]) -> list[dict]:
    """Sum up each third of the requests, and all of them."""
    third = len(served) // NUM_PARTS
    parts = {str(i + 1): served[i * third : (i + 1) * third] for i in range(NUM_PARTS)}
    rows = []
    for part, members in (*parts.items(), ("all", served)):
        ttfts = [one.ttft_s for one in members]
        reused = sum(one.reused_tokens for one in members)
        rows.append(
            {
                "load": load,
                "policy": policy,
                "part": part,
                "ttft_p50_s": percentile(ttfts, 0.5),
                "ttft_p95_s": percentile(ttfts, 0.95),
                "reused": reused / sum(one.request.num_tokens for one in members),
                "reused_per_request": reused / len(members),
            }
        )
    return rows


def ideal_of(trace: Trace) -> list[dict]:
    """Count what one worker would find that never forgets a page."""
    known: set[bytes] = set()
    found = []
    for request in requests_of(trace, 0.0):
        usable = request.keys[: (request.num_tokens - 1) // PAGE_SIZE]
        hits = next((i for i, key in enumerate(usable) if key not in known), len(usable))
        found.append(Served(request, reused_tokens=hits * PAGE_SIZE))
        known.update(request.keys)
    no_times = {"ttft_p50_s": None, "ttft_p95_s": None}
    return [row | no_times for row in parts_of(0.0, "ideal", found)]


def measured_fit() -> Terms:
    """Fit the steps of Qwen3-0.6B in bfloat16 as this machine measured them."""
    rows = json.loads((RESULTS / "decode_growth-qwen3-0.6b.json").read_text())["rows"]
    steps = [
        StepSample(0, row["batch"], row["batch"] * row["context"], row["ms"] / 1e3) for row in rows
    ]
    turns = json.loads((RESULTS / "peers-qwen3-0.6b-prefill.json").read_text())["turns"]
    for turn in turns:
        if turn["engine"] == "rtp_jax":
            num_tokens = int(turn["workload"].partition("-")[2])
            chunks = num_tokens // BUDGET
            for chunk in range(chunks):  # of equal time: what the first ones attend to is little
                seconds = turn["figures"]["ttft_s"] / chunks
                steps.append(StepSample(BUDGET, 0, (chunk + 1) * BUDGET, seconds))
    fit = StepFit()
    for _ in range(50):
        for step in steps:
            fit.learn(step)
    return fit.coefficients


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", help="JSON lines: timestamp, input_length, hash_ids, ...")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--requests", type=int, default=None, help="the first so many; all")
    parser.add_argument("--pages", type=int, default=2048, help="of each worker, 16 tokens each")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.8, 0.95])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--json", help="file for the figures")
    main(parser.parse_args())
