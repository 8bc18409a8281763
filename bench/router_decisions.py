"""How many requests a second does the router place, and how much memory does a known page take?

    python -m bench.router_decisions --json bench/results/router_decisions.json

One core, 32 workers that hold a million different pages, prompts whose pages one of them holds in
part (`--chain` pages at most, and up to 16 that nobody holds).  Between decisions workers report
loads and page events, requests start and end, as often as they would; `Router.ask` is timed alone,
and everything together.  CPU time is beside the clock's, so that neighbours do not count.  Page
identities of the prompts are computed before; what that costs is in a row of its own.
"""

import argparse
import gc
import os
import random
import time
import tracemalloc

from bench.record import write_record
from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.router.facts import (
    Ask,
    Choice,
    EventKind,
    PageEvent,
    PageEvents,
    PageHashing,
    Role,
    StepSample,
    Tier,
    WorkerFacts,
    WorkerLoad,
)
from rtp_jax.router.router import Router
from rtp_jax.router.settings import RouterSettings
from rtp_jax.router.simulator import percentile

PAGE_SIZE = 16
HASHING = PageHashing(b"key", "model", "bfloat16", PAGE_SIZE)
STEPS = [
    StepSample(p, d, 200 * d + p, 0.04 + 4e-4 * p + 1e-3 * d) for p in (0, 512) for d in (1, 9)
]


def main(options: argparse.Namespace) -> None:
    """Fill the index, then time decisions."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = {"workers": options.workers, "policy": options.policy, "chain": options.chain}
    rng = random.Random(0)
    figures["bytes_per_page"] = bytes_per_page(options)
    router = router_of(rng, options)
    began_s = time.thread_time()
    held = fill(router, options)
    figures["known_pages"] = len(router.index)
    figures["event_us"] = (time.thread_time() - began_s) / len(router.index) * 1e6
    figures |= decide(router, held, rng, options)
    figures["identity_us_per_page"] = identity_us()
    for name, value in figures.items():
        print(f"{name:28}{value if isinstance(value, str) else f'{value:.4g}'}")
    if options.json:
        write_record(options.json, "router_decisions", (), figures)


def router_of(rng: random.Random, options: argparse.Namespace) -> Router:
    """Make a router that knows the workers and nothing of their pages."""
    router = Router(RouterSettings(policy=options.policy))
    for i in range(options.workers):
        router.add_worker(facts(i), 0.0)
        router.report(f"w{i}", load(rng), 0.0)
        router.events(f"w{i}", PageEvents(1, [], snapshot=True))
    return router


def bytes_per_page(options: argparse.Namespace) -> float:
    """Fill an index and count the bytes that `page_index.py` allocated and still has."""
    router = router_of(random.Random(0), options)
    tracemalloc.start()
    fill(router, options)
    gc.collect()
    own = tracemalloc.Filter(True, "*/router/page_index.py")
    found = tracemalloc.take_snapshot().filter_traces([own]).statistics("filename")
    tracemalloc.stop()
    return sum(line.size for line in found) / len(router.index)


def fill(router: Router, options: argparse.Namespace) -> list[list[bytes]]:
    """Let workers announce conversations until so many pages are known."""
    rng, chains = random.Random(1), []
    for number in range(options.pages // options.chain):
        keys = [rng.randbytes(16) for _ in range(options.chain)]
        worker = f"w{number % options.workers}"
        events = [PageEvent(EventKind.INSERTED, Tier.DEVICE, key) for key in keys]
        router.events(worker, PageEvents(router.next_event(worker), events))
        chains.append(keys)
    return chains


def decide(
    router: Router, held: list[list[bytes]], rng: random.Random, options: argparse.Namespace
) -> dict:
    """Time decisions, and everything that goes with them."""
    took, cpu, now_s, live = [], [], 0.0, []
    began_s = time.thread_time()
    for number in range(options.decisions):
        now_s += 1 / 2000
        keys = rng.choice(held)[: rng.randrange(1, options.chain)]
        keys = keys + [rng.randbytes(16) for _ in range(rng.randrange(1, 16))]
        ask = Ask(
            request_id=f"r{number}",
            num_tokens=len(keys) * PAGE_SIZE + 7,
            keys={HASHING: keys},
            max_tokens=128,
            tenant=f"t{number % 50}",
            session=f"s{number % 5000}",
            arrival_s=now_s,
        )
        asked_s, asked_cpu_s = time.perf_counter(), time.thread_time()
        answer = router.ask(ask, now_s)
        cpu.append(time.thread_time() - asked_cpu_s)
        took.append(time.perf_counter() - asked_s)
        assert isinstance(answer, Choice), answer
        live.append(ask.request_id)
        meanwhile(router, live, number, now_s, rng, options.workers)
    whole_s = time.thread_time() - began_s
    return {
        "decisions_per_s": len(took) / sum(took),
        "p50_ms": percentile(took, 0.5) * 1e3,
        "p99_ms": percentile(took, 0.99) * 1e3,
        "cpu_p50_ms": percentile(cpu, 0.5) * 1e3,
        "cpu_p99_ms": percentile(cpu, 0.99) * 1e3,
        "cpu_max_ms": max(cpu) * 1e3,
        "decisions_per_cpu_s": len(cpu) / sum(cpu),
        "with_all_reports_per_cpu_s": len(took) / whole_s,
    }


def meanwhile(
    router: Router, live: list[str], number: int, now_s: float, rng: random.Random, workers: int
) -> None:
    """Let a request start, one end, and at 2000 decisions a second 20 loads a worker and second."""
    if number >= 32:
        router.started(live[number - 32], now_s)
    if number >= 128:
        router.finished(live[number - 128], now_s, num_output_tokens=100)
    if number % 3 == 0:
        worker = f"w{number // 3 % workers}"
        router.report(worker, load(rng), now_s)
        events = [PageEvent(EventKind.INSERTED, Tier.DEVICE, rng.randbytes(16)) for _ in range(8)]
        router.events(worker, PageEvents(router.next_event(worker), events))


def facts(number: int) -> WorkerFacts:
    """Describe one worker."""
    return WorkerFacts(
        id=f"w{number}",
        address="",
        epoch="1",
        role=Role.BOTH,
        hashing=HASHING,
        num_pages=40_000,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_model_len=1 << 20,
    )


def load(rng: random.Random) -> WorkerLoad:
    """Draw a load of a busy worker."""
    return WorkerLoad(
        num_running=rng.randrange(1, 16),
        num_waiting=rng.randrange(3),
        num_free_pages=1000,
        num_cached_pages=30_000,
        prefill_tokens=rng.randrange(2000),
        decode_tokens=rng.randrange(20_000),
        num_decoding=rng.randrange(1, 16),
        steps=STEPS,
    )


def identity_us() -> float:
    """Time page identities: microseconds for each page."""
    identity = PageIdentity(b"key", page_size=PAGE_SIZE, model_epoch="m", kv_scheme="bfloat16")
    tokens = list(range(PAGE_SIZE * 1000))
    began_s = time.perf_counter()
    PageChain(identity, identity.root()).extend(tokens)
    return (time.perf_counter() - began_s) * 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--chain", type=int, default=64, help="pages of a conversation")
    parser.add_argument("--decisions", type=int, default=10_000)
    parser.add_argument("--policy", default="ttft")
    parser.add_argument("--json", help="file for the figures")
    main(parser.parse_args())
