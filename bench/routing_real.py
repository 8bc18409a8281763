"""How soon do requests of a real service get their first token from real workers, policy by policy?

    python -m bench.routing_real MODEL TRACE --json bench/results/routing_real.json

What `bench/routing.py` simulates, with processes: a few workers, a router before them, and the
first requests of a trace, lengths scaled in the same way and times so that the load is a share of
what round-robin gets through when all come at once.  Workers share the cores of this machine and so
help each other out, unless each has a part of one to itself (`--core-share`).  Policies take turns,
each with pages of its own (`cache_salt`), and the first turn of each is not counted.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator

from bench.core_share import CoreShare
from bench.record import write_record
from bench.router_latency import process
from bench.routing import BUDGET, LENGTH_SCALE, PAGE_SIZE, ideal_of, parts_of, requests_of
from rtp_jax import SamplingParams
from rtp_jax.benchmark.trace import Trace, read_trace
from rtp_jax.router.simulator import Served
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client_messages import RequestOptions

POLICIES = ("round_robin", "least_tokens", "ttft")
WARM = 200  # requests of the turn that is not counted
MAX_TOKENS = 32  # of an answer: decoding is not what is compared
COLUMNS = ("load", "policy", "turn", "part", "ttft_p50_s", "ttft_p95_s", "reused", "took_s")


@contextlib.contextmanager
def service(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Start the workers, and a router for each policy; yield the routers' addresses."""
    settings = ["--max-num-seqs", "16", "--max-num-batched-tokens", str(BUDGET)]
    settings += ["--num-pages", str(options.pages), "--page-size", str(PAGE_SIZE)]
    settings += ["--max-model-len", str(options.max_model_len), "--max-waiting", "1000"]
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        workers = []
        for number in range(options.workers):
            with starting(stack, number, options.core_share):
                workers.append(start(process("serve", options.model, *settings)))
        waiting = ("--router-max-waiting", str(options.requests))
        behind = [word for worker in workers for word in ("--worker", worker)]
        yield {
            policy: start(process("route", options.model, *behind, "--policy", policy, *waiting))
            for policy in options.policies
        }


def starting(
    stack: contextlib.ExitStack, number: int, share: float | None
) -> contextlib.AbstractContextManager[None]:
    """Let a worker that is started in a block have its share of one core, if it is to have one."""
    if share is None:
        return contextlib.nullcontext()
    return stack.enter_context(CoreShare(share, number)).starting()


async def replay(
    address: str, trace: Trace, vocab_size: int, scale: float, salt: str
) -> tuple[list[Served], float]:
    """Send the requests as they came, times a scale; return what was seen and how long it took."""
    prompts = list(trace.prompts(vocab_size, (7,)))
    served = [Served(request) for request in requests_of(trace, scale)]
    async with AsyncClient(address) as client:
        began_s = time.perf_counter()

        async def one(number: int) -> None:
            line = trace.lines[number]
            await asyncio.sleep((line.at_s or 0.0) * scale - (time.perf_counter() - began_s))
            sent_s, mine = time.perf_counter(), served[number]
            params = SamplingParams(
                temperature=0.0,
                max_tokens=min(line.num_output_tokens or 1, MAX_TOKENS),
                ignore_eos=True,
                output_kind=OutputKind.DELTA,
            )
            options = RequestOptions(cache_salt=salt)
            async for output in client.stream(list(prompts[number]), params, options):
                if mine.ttft_s < 0:
                    mine.ttft_s = time.perf_counter() - sent_s
                    mine.reused_tokens = output.num_cached_tokens
            assert mine.ttft_s >= 0

        await asyncio.gather(*(one(number) for number in range(len(trace.lines))))
    return served, time.perf_counter() - began_s


async def measure(routers: dict[str, str], trace: Trace, options: argparse.Namespace) -> list[dict]:
    """Find load 1, then let the policies take turns at each load."""
    trace_s = max(line.at_s or 0.0 for line in trace.lines)
    any_policy = next(iter(routers))
    few = Trace(trace.lines[:WARM], trace.block_tokens)
    for policy, address in routers.items():
        await replay(address, few, options.vocab, 0.0, f"warm {policy}")
    _, saturated_s = await replay(routers[any_policy], trace, options.vocab, 0.0, "full")
    print(f"{any_policy} serves all of them in {saturated_s:.1f} s when they come at once")
    rows = []
    for load in options.loads:
        for turn in range(options.rounds):
            for policy, address in routers.items():
                scale = saturated_s / load / trace_s
                salt = f"{policy} {load} {turn}"
                served, took_s = await replay(address, trace, options.vocab, scale, salt)
                for row in parts_of(load, policy, served):
                    rows.append(row | {"turn": turn, "took_s": took_s})
                    show(rows[-1])
    return rows


def show(row: dict) -> None:
    """Print one row."""
    cells = (row[name] for name in COLUMNS)
    print("".join(f"{c:>14.4g}" if isinstance(c, float) else f"{c:>14}" for c in cells), flush=True)


def main(options: argparse.Namespace) -> None:
    """Print and keep one row for each run and part of the trace."""
    trace = read_trace(
        options.trace, most=options.requests, length_scale=LENGTH_SCALE, time_scale=1.0
    )
    longest = max((line.num_prompt_tokens or 1) for line in trace.lines)
    options.max_model_len = longest + MAX_TOKENS + 1
    ideal = {row["part"]: row["reused"] for row in ideal_of(trace)}
    print("".join(f"{name:>14}" for name in COLUMNS))
    with service(options) as routers:
        rows = asyncio.run(measure(routers, trace, options))
    print(f"one worker that never forgets would reuse {ideal['all']:.1%}")
    if options.json:
        figures = {
            "model": options.model.rsplit("/", 1)[-1],
            "requests": len(trace.lines),
            "workers": options.workers,
            "pages": options.pages,
            "core_share": options.core_share,
            "ideal_reused": ideal,
            "rows": rows,
        }
        write_record(options.json, "routing_real", ("jax", "jaxlib", "grpcio"), figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name")
    parser.add_argument("trace", help="JSON lines: timestamp, input_length, hash_ids, ...")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pages", type=int, default=2048, help="of KV, in each worker")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.8, 0.95])
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument(
        "--core-share", type=float, help="of one core, for each worker alone (root)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=2000, help="ids of prompts lie below it")
    parser.add_argument("--json", help="file for the figures")
    main(parser.parse_args())
