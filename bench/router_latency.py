"""How much later does an answer come through an idle router?  Asked in turns, direct and routed.

    python -m bench.router_latency [--model rtp-tiny] [--rounds 300] [--json FILE]

A worker and a router run as processes on this machine.  In each round a prompt of its own goes to
the worker directly and another one of the same length through the router, in alternating order;
the next round begins when both have been answered.  Times are the client's: request to first token,
and to the last of 8.  The result is the difference of the medians.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.record import write_record
from rtp_jax import SamplingParams
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client import Client

NUM_PROMPT, NUM_TOKENS = 64, 8
WARM_UP = 20
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[str]:
    """Run a command of `rtp-jax` until the block ends; yields where it listens, once it serves."""
    command = [sys.executable, "-m", "rtp_jax.serving.main", *arguments, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        try:
            assert started.stdout is not None
            address = ""
            for line in started.stdout:
                if line.startswith("listening on "):
                    address = line.removeprefix("listening on ").strip()
                if line.startswith("serving "):
                    break
            with Client(address) as client:
                client.wait_until_serving(600)
            yield address
        finally:
            started.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(10)
            started.kill()


async def one(client: AsyncClient, number: int) -> tuple[float, float]:
    """Ask once; return the seconds to the first and to the last token."""
    began, first_s = time.perf_counter(), 0.0
    prompt = [5 + number % 400, 5 + number // 400, *[9] * (NUM_PROMPT - 2)]
    async for output in client.stream(prompt, PARAMS):
        if not first_s and output.outputs[0].token_ids:
            first_s = time.perf_counter() - began
    return first_s, time.perf_counter() - began


async def measure(worker: str, router: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Ask both in turns."""
    seconds: dict[str, list[tuple[float, float]]] = {"direct": [], "routed": []}
    async with AsyncClient(worker) as direct, AsyncClient(router) as routed:
        ways = [("direct", direct), ("routed", routed)]
        for round_ in range(WARM_UP + rounds):
            for at, (name, client) in enumerate(ways[:: 1 if round_ % 2 else -1]):
                taken = await one(client, 2 * round_ + at)
                if round_ >= WARM_UP:
                    seconds[name].append(taken)
    return seconds


def summary(seconds: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Put figures together, in milliseconds."""
    figures: dict[str, float] = {}
    for at, what in enumerate(("first_token", "last_token")):
        for name, taken in seconds.items():
            times = sorted(1e3 * each[at] for each in taken)
            figures[f"{what}_{name}_p50_ms"] = round(statistics.median(times), 3)
            figures[f"{what}_{name}_p99_ms"] = round(times[int(0.99 * len(times))], 3)
        added = figures[f"{what}_routed_p50_ms"] - figures[f"{what}_direct_p50_ms"]
        figures[f"{what}_added_p50_ms"] = round(added, 3)
    return figures


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="rtp-tiny")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json")
    options = parser.parse_args()
    with (
        process("serve", options.model, "--max-num-seqs", "8") as worker,
        process("route", options.model, "--worker", worker) as router,
    ):
        figures = summary(asyncio.run(measure(worker, router, options.rounds)))
    for name, value in figures.items():
        print(f"{name:32} {value:8.3f}")
    if options.json:
        packages = ("jax", "grpcio", "protobuf")
        write_record(
            options.json, "router_latency", packages, {"rounds": options.rounds, **figures}
        )


if __name__ == "__main__":
    main()
