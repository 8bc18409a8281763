"""`rtp-jax bench`: which measurement was meant.

    rtp-jax bench latency | throughput      an engine in this process
    rtp-jax bench serve | load              a server, over gRPC or OpenAI-compatible HTTP

Read next: `bench_latency.py`, `bench_throughput.py`, and `bench_online.py` for the other two.
"""

import argparse
from collections.abc import Sequence

from rtp_jax.serving.bench_latency import latency
from rtp_jax.serving.bench_online import load, serve
from rtp_jax.serving.bench_throughput import throughput

KINDS = {  # name -> what runs, what it does
    "latency": (latency, "one batch in this process: time to first token, time per output token"),
    "throughput": (throughput, "many prompts in this process: requests and tokens per second"),
    "serve": (serve, "drive a server: latencies, throughput, goodput"),
    "load": (load, "drive a server at one load after the other: a table and a plot"),
}


def bench(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Run one of the measurements."""
    lines = [f"  {name:10} {words}" for name, (_, words) in KINDS.items()]
    more = "`rtp-jax bench KIND --help` shows its options; docs/benchmarks.md defines the figures."
    parser.epilog = "\n".join(["kinds:", *lines, "", more])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="see below")
    name = parser.parse_args(arguments[:1]).kind
    run, words = KINDS[name]
    chosen = argparse.ArgumentParser(
        prog=f"{parser.prog} {name}", description=words, allow_abbrev=False
    )
    return run(chosen, arguments[1:])
