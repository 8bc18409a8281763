"""Do sequences that decode notice long prompts?  Time per output token, idle and during a burst.

    python -m bench.disaggregation MODEL [--prompt 2048] [--rounds 3] [--link MB/S] [--json FILE]

One core is pinned to each worker.  Two arms, in turns: a decode worker with a prefill worker beside
it, and one fused worker on one core.  A few streams decode; in the burst, long prompts of one token
each arrive one after another for as long as they run.  TPOT of a stream is (last - first token) /
(tokens - 1), on the reader's side; the gaps between its tokens are shown as well.  Figures are
medians of rounds.

Then: how much of the time that pages take to move is hidden behind the prefill?  The same prompt is
pulled twice, page by page while it is computed, and at the end; what the first one takes longer
than computing alone is not hidden.  Over loopback a transfer is nothing but work for the core that
computes; over a link (`bench/slow_link.py`), as between machines, it also takes time.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from bench.record import write_record
from bench.slow_link import slow_link
from rtp_jax import SamplingParams
from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.page_record import KvLayout
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.transfer.assembly import AskedPage
from rtp_jax.transfer.layout import layout_of
from rtp_jax.transfer.peer import Peer, Peers
from rtp_jax.transfer.pull import Ask, Pull
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb
from rtp_jax.wire.kv_pb2_grpc import KvTransferStub

NUM_STREAMS = 4
NUM_TOKENS = 128
NUM_FETCHES = 15


@dataclass
class Gaps:
    """What the readers of one round saw, in seconds."""

    tpot: list[float] = field(default_factory=list)  # one for each stream
    between: list[float] = field(default_factory=list)  # tokens of one stream
    prompts: int = 0  # long ones that were answered meanwhile


@contextlib.contextmanager
def worker(model: str, role: str, core: int, longest: int) -> Iterator[str]:
    """Start a worker on one core; yield its address."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "rtp_jax.serving.main", "serve"]
    command += [model, "--port", "0", "--role", role, "--max-model-len", str(longest)]
    command += ["--max-num-seqs", "16", "--transfer-min-tokens", "64"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        start = "listening on "
        said = (line for line in server.stdout if line.startswith(start))
        address = next(said).removeprefix(start).strip()
        threading.Thread(target=server.stdout.read, daemon=True).start()
        with Client(address) as client:
            client.wait_until_serving(timeout_s=600)
        yield address
    finally:
        server.terminate()
        server.wait()


def prompt(length: int, number: int, vocab: int = 2000) -> list[int]:
    """Make a prompt that nobody has seen."""
    return np.random.default_rng(number).integers(10, vocab, length).tolist()


async def read(client: AsyncClient, number: int, gaps: Gaps) -> None:
    """Decode one stream to its end."""
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, output_kind=OutputKind.DELTA
    )
    times = []
    async for output in client.stream(prompt(32, number), params):
        times += [time.perf_counter()] * sum(len(part.token_ids) for part in output.outputs)
    gaps.tpot.append((times[-1] - times[0]) / (len(times) - 1))
    gaps.between += [after - before for before, after in itertools.pairwise(times)]


async def burst(
    client: AsyncClient, options: RequestOptions, length: int, first: int, gaps: Gaps
) -> None:
    """Send long prompts, two at a time, until cancelled."""
    numbers = iter(range(first, first + 10**6))

    async def send() -> None:
        while True:
            one = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
            await client.generate(prompt(length, next(numbers)), one, options)
            gaps.prompts += 1

    await asyncio.gather(send(), send())


async def one_round(
    address: str, prefill_at: Sequence[str], length: int, seed: int, *, busy: bool
) -> Gaps:
    """Decode a few streams, with or without a burst of long prompts beside them."""
    gaps = Gaps()
    async with AsyncClient(address) as client:
        options = RequestOptions(prefill_at=prefill_at)
        task = None
        if busy:
            task = asyncio.create_task(burst(client, options, length, seed + 100, gaps))
            await asyncio.sleep(0.5)
        await asyncio.gather(*(read(client, seed + i, gaps) for i in range(NUM_STREAMS)))
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return gaps


def interference(
    address: str, prefill_at: Sequence[str], length: int, rounds: int
) -> dict[str, float]:
    """Run idle and busy rounds in turns, the first of each to warm up; return medians of rounds."""
    rows = []
    for number in range(rounds + 1):
        idle, busy = (
            asyncio.run(one_round(address, prefill_at, length, 20_000 * number + seed, busy=busy))
            for seed, busy in ((0, False), (10_000, True))
        )
        rows.append(
            {
                "tpot_p99_idle_s": p99(idle.tpot),
                "tpot_p99_burst_s": p99(busy.tpot),
                "ratio": p99(busy.tpot) / p99(idle.tpot),
                "gap_p99_idle_s": p99(idle.between),
                "gap_p99_burst_s": p99(busy.between),
                "long_prompts": busy.prompts,
            }
        )
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


def hidden_share(address: str, length: int, seed: int) -> dict[str, float]:
    """Compare pages that come while they are computed with pages that come at the end."""
    layout, key = _layout(address)
    peers = Peers(layout)
    (peer,) = peers.at([address])
    shares, figures = [], []
    for number in range(NUM_FETCHES + 1):
        streamed, computed, moved = (
            _streamed(peer, layout, key, length, seed + number),
            *_one_after_the_other(peer, layout, key, length, seed + 1000 + number),
        )
        if number:
            shares.append(1 - max(streamed - computed, 0.0) / moved)
            figures.append((streamed, computed, moved))
    peers.close()
    middle = [statistics.median(column) for column in zip(*figures, strict=True)]
    names = ("streamed_s", "computed_s", "moved_s")
    return {"hidden": statistics.median(shares), **dict(zip(names, middle, strict=True))}


def _layout(address: str) -> tuple[KvLayout, bytes]:
    """Ask a worker for its layout; the page key of a worker that was given none is its model's."""
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        layout = layout_of(KvTransferStub(channel).Hello(pb.HelloRequest(), timeout=5).layout)
        return layout, client.model_info().fingerprint.encode()


def _wanted(layout: KvLayout, key: bytes, length: int, number: int, first_page: int = 0) -> Ask:
    """Ask for all full pages of a prompt."""
    ids = prompt(length // layout.page_size * layout.page_size, number)
    identity = PageIdentity(
        key, page_size=layout.page_size, model_epoch=layout.model_epoch, kv_scheme=layout.kv_scheme
    )
    chain = PageChain(identity, identity.root())
    chain.extend(ids)
    pages = [
        AskedPage(page, chain.keys[at - 1] if at else chain.root, chain.packed[at])
        for at, page in enumerate(chain.keys)
    ]
    return Ask(
        request_id=f"bench-{number}",
        token_ids=ids,
        cache_salt="",
        pages=pages,
        first_page=first_page,
        priority=0,
        deadline_s=time.monotonic() + 600,
    )


def _streamed(peer: Peer, layout: KvLayout, key: bytes, length: int, number: int) -> float:
    pull = Pull(_wanted(layout, key, length, number), [peer], Stop())
    pages = list(pull.records())
    assert not pull.result.failures, pull.result.failures
    assert len(pages) == length // layout.page_size
    return pull.result.total_s


def _one_after_the_other(
    peer: Peer, layout: KvLayout, key: bytes, length: int, number: int
) -> tuple[float, float]:
    """Return the seconds of computing all pages, and of moving them afterwards."""
    wanted = _wanted(layout, key, length, number)
    hello = peer.hello(5.0)
    began = time.perf_counter()
    request = pb.OfferRequest(
        request_id=wanted.request_id,
        token_ids=wanted.token_ids,
        deadline_s=600.0,
        fingerprint=layout.fingerprint,
        epoch=hello.epoch,
    )
    offer = peer.stub.Offer(request, timeout=10)
    names = {"offer_id": offer.offer_id, "epoch": offer.epoch}
    last, done = len(wanted.pages) - 1, False
    while not done:
        pull = pb.PullRequest(**names, first_page=last, wait_s=5.0)
        done = any(frame.last for frame in peer.stub.Pull(pull, timeout=30))
    computed = time.perf_counter() - began
    at, began = 0, time.perf_counter()
    while at <= last:
        for frame in peer.stub.Pull(pb.PullRequest(**names, first_page=at, wait_s=5.0), timeout=60):
            at = frame.first_page + len(frame.pages)
    moved = time.perf_counter() - began
    peer.stub.Ack(pb.OfferId(**names), timeout=10)
    return computed, moved


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(values, 99))


def main() -> None:
    """Print both arms and the share that is hidden."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of a long prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-fused", action="store_true", help="leave out the fused worker")
    parser.add_argument("--link", type=float, default=125, help="MB/s of a link; 125 is 1 Gbit/s")
    parser.add_argument("--json")
    options = parser.parse_args()
    every = os.sched_getaffinity(0)
    cores = sorted(every)[:2]
    longest = options.prompt + 512
    os.sched_setaffinity(0, {cores[-1]})  # the core that decodes is left alone
    figures: dict[str, object] = {"prompt": options.prompt, "link_mb_s": options.link}
    with (
        worker(options.model, "decode", cores[0], longest) as decode,
        worker(options.model, "prefill", cores[-1], longest) as prefill,
    ):
        arms = {"two pools": interference(decode, [prefill], options.prompt, options.rounds)}
        os.sched_setaffinity(0, {cores[0]})  # whoever pulls is where a decode worker would be
        transfers = {"loopback": hidden_share(prefill, options.prompt, 7000)}
        with slow_link(prefill, options.link * 1e6) as address:
            transfers["link"] = hidden_share(address, options.prompt, 9000)
        os.sched_setaffinity(0, {cores[-1]})
    if not options.no_fused:
        with worker(options.model, "both", cores[0], longest) as fused:
            arms["fused"] = interference(fused, [], options.prompt, options.rounds)
    for name, row in arms.items():
        figures[name] = row
        print(
            f"{name:10} TPOT p99 idle {row['tpot_p99_idle_s'] * 1e3:7.2f} ms"
            f"  burst {row['tpot_p99_burst_s'] * 1e3:7.2f} ms  ratio {row['ratio']:5.2f}"
            f"   gap p99 {row['gap_p99_idle_s'] * 1e3:7.2f} ->"
            f" {row['gap_p99_burst_s'] * 1e3:7.2f} ms   {row['long_prompts']:g} long prompts"
        )
    figures["transfer"] = transfers
    for name, found in transfers.items():
        print(f"{name:10}", {what: round(value, 4) for what, value in found.items()})
    os.sched_setaffinity(0, every)
    if options.json:
        write_record(options.json, "disaggregation", ("jax", "jaxlib", "grpcio"), figures)


if __name__ == "__main__":
    main()
