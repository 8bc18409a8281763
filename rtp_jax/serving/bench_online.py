"""`rtp-jax bench serve` and `load`: a server driven from here, over gRPC or OpenAI-compatible HTTP.

`serve` runs one load, `load` one after the other.  What is sent is in `benchmark/workload.py`, when
in `benchmark/drive.py`, what is made of it in `benchmark/figures.py`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tqdm

from rtp_jax.benchmark import report, sweep
from rtp_jax.benchmark.drive import Observed, drive
from rtp_jax.benchmark.figures import summary
from rtp_jax.benchmark.grpc_target import GrpcTarget
from rtp_jax.benchmark.http_target import HttpTarget
from rtp_jax.benchmark.options import Objective, count, not_together, number, numbers
from rtp_jax.benchmark.targets import Address, Asking, Served, Target, vocabulary_unknown
from rtp_jax.benchmark.workload import Planned, Workload, poisson, replayed
from rtp_jax.errors import Unavailable
from rtp_jax.serving.bench_flags import (
    add_target,
    add_workload,
    address_of,
    asking_of,
    described,
    objective_of,
    workload_of,
)
from rtp_jax.serving.flags import parse
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer

PACKAGES = ("rtp_jax", "numpy", "grpcio", "aiohttp")
WARM_TOKENS = 8
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """What a run needs to know besides its load."""

    address: Address
    asking: Asking
    workload: Workload
    objective: Objective | None
    wait_s: float  # for a server that still starts
    num_warm: int
    vocab_size: int | None  # None: as the server says
    tokenizer: Tokenizer | None  # prompts go as text


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """When requests are sent."""

    concurrency: int | None = None  # None: any number at once
    rate: float | None = None  # Poisson arrivals a second
    replay: bool = False  # arrivals as in the trace

    def requests(self, workload: Workload, vocab_size: int, draw: int) -> list[Planned]:
        """Make the requests of a run."""
        requests = workload.requests(vocab_size, draw)
        if self.rate is not None:
            return poisson(requests, self.rate, workload.seed)
        if self.replay:
            assert workload.trace is not None
            return replayed(requests, workload.trace)
        return requests


def serve(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Drive a server at one load."""
    add_target(parser)
    add_workload(parser)
    parser.add_argument("--rate", metavar="X", help="Poisson arrivals a second")
    parser.add_argument("--replay", action="store_true", help="arrivals as in the trace")
    parser.add_argument("--time-scale", metavar="X", help="seconds for each second of the trace")
    parser.add_argument(
        "--concurrency", metavar="N", help="requests at once; default: 1 without arrivals, else any"
    )
    parsed = parse(parser, arguments)
    report.check_writable("--json", parsed.json)
    time_scale = number("--time-scale", parsed.time_scale or "1")
    client = _client(parsed, time_scale)
    load_ = _load(parsed, client.workload)
    record = report.origin("serve", PACKAGES)
    served, ((seen),) = asyncio.run(_runs(client, [load_]))
    figures = summary(seen, client.objective)
    record |= _about(client, served, parsed)
    record["load"] = {"concurrency": load_.concurrency, "rate": load_.rate, "replay": load_.replay}
    report.write_json(parsed.json, record | figures)
    print(report.shown(figures))
    _check_completed([figures])
    return 0


def load(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Drive a server at several loads, one after the other."""
    add_target(parser)
    add_workload(parser)
    parser.add_argument("--rates", metavar="LIST", help="Poisson arrivals a second: 0.5,1,2,4")
    parser.add_argument("--concurrencies", metavar="LIST", help="requests at once: 1,2,4,8")
    parser.add_argument("--plot", metavar="FILE", help="latency against load: png, svg or pdf")
    parsed = parse(parser, arguments)
    report.check_writable("--json", parsed.json)
    sweep.check_plot(parsed.plot)
    name, loads = _sweep(parsed)
    client = _client(parsed, 1.0)
    record = report.origin("load", PACKAGES)
    served, runs = asyncio.run(_runs(client, list(loads.values())))
    points = [
        {name: value} | summary(seen, client.objective)
        for value, seen in zip(loads, runs, strict=True)
    ]
    record |= _about(client, served, parsed)
    report.write_json(parsed.json, record | {"load": name, "points": points})
    if parsed.plot is not None:
        sweep.plot(parsed.plot, points, name, f"{served.model} at {client.address.url}")
    print(sweep.shown(points, name))
    _check_completed(points)
    return 0


async def _runs(client: Client, loads: Sequence[Load]) -> tuple[Served, list[list[Observed]]]:
    """Drive the server at each load; token ids differ from one load to the next."""
    target = _connected(client.address)
    try:
        served = await _described(target, client.wait_s)
        vocab_size = _vocab_size(client, served)
        asking = replace(client.asking, model=client.asking.model or served.model)
        warm = [Planned(tuple(range(WARM_TOKENS)), WARM_TOKENS)] * client.num_warm
        if client.tokenizer is not None:
            warm = _as_text(warm, client.tokenizer)
        await drive(target, warm, asking, concurrency=1)
        runs = []
        for draw, load_ in enumerate(loads):
            requests = load_.requests(client.workload, vocab_size, draw)
            if client.tokenizer is not None:
                requests = _as_text(requests, client.tokenizer)
            bar = tqdm.tqdm(total=len(requests), desc="requests", disable=not sys.stderr.isatty())
            with bar:
                seen = await drive(
                    target, requests, asking, concurrency=load_.concurrency, on_end=bar.update
                )
            runs.append(seen)
        return served, runs
    finally:
        await target.close()


async def _described(target: Target, wait_s: float) -> Served:
    """Ask a server what it serves, again and again while it starts."""
    until = time.monotonic() + wait_s
    while True:
        try:
            return await target.describe()
        except Unavailable:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(POLL_S)


def _client(parsed: argparse.Namespace, time_scale: float) -> Client:
    seed = count("--seed", parsed.seed, least=0)
    tokenizer = None if parsed.tokenizer is None else load_tokenizer(Path(parsed.tokenizer))
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    if parsed.vocab_size is not None:
        vocab_size = count("--vocab-size", parsed.vocab_size)
    if parsed.as_text and tokenizer is None:
        raise not_together(["--as-text"], "ids become text by a tokenizer; add --tokenizer FOLDER")
    return Client(
        address=(address := address_of(parsed)),
        asking=asking_of(parsed, address),
        workload=workload_of(parsed, seed=seed, time_scale=time_scale),
        objective=objective_of(parsed),
        wait_s=number("--wait", parsed.wait, above=-1e-9),
        num_warm=count("--warmup", parsed.warmup, least=0),
        vocab_size=vocab_size,
        tokenizer=tokenizer if parsed.as_text else None,
    )


def _load(parsed: argparse.Namespace, workload: Workload) -> Load:
    """Say when requests are sent."""
    trace = workload.trace
    if parsed.replay and (trace is None or not trace.timed):
        raise not_together(["--replay"], "it wants a --trace whose lines all have a timestamp")
    if parsed.replay and parsed.rate is not None:
        raise not_together(["--replay", "--rate"], "both say when requests arrive; leave one out")
    if parsed.time_scale is not None and not parsed.replay:
        raise not_together(["--time-scale"], "it scales the arrivals of a trace; add --replay")
    rate = None if parsed.rate is None else number("--rate", parsed.rate)
    closed = rate is None and not parsed.replay
    concurrency = parsed.concurrency or ("1" if closed else None)
    return Load(
        rate=rate,
        replay=parsed.replay,
        concurrency=None if concurrency is None else count("--concurrency", concurrency),
    )


def _sweep(parsed: argparse.Namespace) -> tuple[str, dict[float, Load]]:
    """Say which loads a sweep goes through, by rate or by concurrency."""
    if (parsed.rates is None) == (parsed.concurrencies is None):
        raise not_together(["--rates", "--concurrencies"], "a sweep is over one of them; give one")
    if parsed.rates is not None:
        return "rate", {rate: Load(rate=rate) for rate in numbers("--rates", parsed.rates)}
    values = sorted({count("--concurrencies", each) for each in parsed.concurrencies.split(",")})
    return "concurrency", {value: Load(concurrency=value) for value in values}


def _connected(address: Address) -> Target:
    return GrpcTarget(address) if address.scheme.startswith("grpc") else HttpTarget(address)


def _vocab_size(client: Client, served: Served) -> int:
    """Say from how many ids prompts are made; 0: no prompt is made."""
    trace = client.workload.trace
    found = client.vocab_size or served.vocab_size
    if found is None and trace is not None and all(line.prompt is not None for line in trace.lines):
        return 0
    if found is None:
        raise vocabulary_unknown(client.address.url)
    return found


def _as_text(requests: Sequence[Planned], tokenizer: Tokenizer) -> list[Planned]:
    """Spell prompts as text; servers may count a few tokens more or fewer."""
    return [
        each
        if isinstance(each.prompt, str)
        else replace(each, prompt=tokenizer.decode(each.prompt))
        for each in requests
    ]


def _about(client: Client, served: Served, parsed: argparse.Namespace) -> dict[str, object]:
    """Say what was driven, and by what."""
    asking = client.asking
    return {
        "target": client.address.url,
        "model": asking.model or served.model,
        "server": dict(served.about),
        "workload": described(client.workload, parsed),
        "temperature": asking.temperature,
        "ignore_eos": asking.ignore_eos,
        "extra_body": dict(asking.extra_body),
        "prompts_as": "text" if client.tokenizer else "token ids, where the workload has no text",
    }


def _check_completed(runs: Sequence[dict]) -> None:
    """Fail if nothing at all was measured."""
    if any(run["num_completed"] for run in runs):
        return
    kinds = sorted({kind for run in runs for kind in run["failures"]})
    raise Unavailable(
        f"RTPJ-5510 NOTHING_COMPLETED: all {sum(run['num_requests'] for run in runs)} requests"
        f" failed: {', '.join(kinds)}. docs/errors.md explains RTPJ ids; the server's log has more."
    )
