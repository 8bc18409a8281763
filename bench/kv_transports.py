"""How fast do pages travel over either transport, from one worker's host memory to another's?

    python -m bench.kv_transports [--rounds 5] [--json FILE]

A second process serves pages that are all computed already, by the real service; this one pulls
them as a decode worker does, identities and digests checked, in turns over gRPC and over jax's
transfer server.  Shown: median times and rates, and at the end the memory of both processes and
what was given and never fetched.  Both processes share this machine's cores.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from grpc import aio

from bench.record import machine, write_record
from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.metrics import Metrics
from rtp_jax.page_record import GroupLayout, KvLayout, record_of
from rtp_jax.runner.direct_server import JaxEnd
from rtp_jax.serving.door import Door
from rtp_jax.transfer.assembly import AskedPage
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.direct_give import Giving
from rtp_jax.transfer.direct_take import Taking
from rtp_jax.transfer.kv_service import KvService
from rtp_jax.transfer.offers import Offer, Offers, PrefillAsk
from rtp_jax.transfer.peer import Peers
from rtp_jax.transfer.pull import Ask, Pull
from rtp_jax.transfer.stop import Stop
from rtp_jax.wire import kv_pb2 as pb

PAGE_SIZE, NUM_PAGES = 16, 128
SHAPES = {"rtp-tiny": (4, 4, 32), "0.6B": (28, 8, 128)}  # layers, KV heads, head_dim; bfloat16
MAX_BYTES, KEEP_S, MAX_STUCK, PATIENCE_S = 1 << 30, 30.0, 4, 60.0
MIB = 1 << 20


def main(options: argparse.Namespace) -> None:
    """Print and keep one row for each shape and transport."""
    print(machine())
    rows = [row for shape in SHAPES for row in measured(shape, options.rounds)]
    if options.json:
        write_record(options.json, "kv_transports", ("jax", "jaxlib", "grpcio"), {"rows": rows})


def measured(shape: str, rounds: int) -> Iterator[dict]:
    """Pull the same prompts over each transport, in turns."""
    layout, end = layout_of(shape), JaxEnd("127.0.0.1")
    taking = Taking(end, max_stuck=MAX_STUCK)
    ways = {"grpc": Peers(layout), "jax": Peers(layout, taking=taking)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with served(shape) as (address, ask_memory):
        for number, (way, peers) in ((n, each) for n in range(rounds + 1) for each in ways.items()):
            spent_s, direct = pull(peers, address)
            assert direct == (NUM_PAGES if way == "jax" else 0), f"{direct} pages came directly"
            if number:  # the first connects
                seconds[way].append(spent_s)
        there = ask_memory()
    for way, each in seconds.items():
        median_s = statistics.median(each)
        rate = NUM_PAGES * layout.page_bytes / median_s / 1e9
        row = {"shape": shape, "transport": way, "ms": median_s * 1e3, "gb_per_s": rate}
        row |= {"page_bytes": layout.page_bytes, "pages": NUM_PAGES}
        row |= {"mib_here": memory(), "mib_there": there, "all_ms": [s * 1e3 for s in each]}
        words = f"{shape:10}{way:6}{layout.page_bytes:>9} B x {NUM_PAGES}{median_s * 1e3:>9.1f} ms"
        print(f"{words}{rate:>8.2f} GB/s   {memory()} MiB here, {there} there")
        yield row
    for peers in ways.values():
        peers.close()
    taking.close()
    end.close()


def pull(peers: Peers, address: str) -> tuple[float, int]:
    """Pull all pages; return the seconds, and how many came directly."""
    pulling = Pull(wanted(time.monotonic() + PATIENCE_S), peers.at([address]), Stop())
    began = time.monotonic()
    for _ in pulling.records():
        pass
    assert pulling.result.whole, pulling.result.failures
    return time.monotonic() - began, pulling.result.num_direct


def wanted(deadline_s: float) -> Ask:
    """Ask for the pages of the one prompt there is."""
    ids, chain = list(range(NUM_PAGES * PAGE_SIZE)), the_chain()
    parents = (chain.root, *chain.keys)
    pages = [AskedPage(*each) for each in zip(chain.keys, parents, chain.packed, strict=False)]
    return Ask(
        request_id="bench",
        token_ids=ids,
        cache_salt="",
        first_page=0,
        pages=pages,
        priority=0,
        deadline_s=deadline_s,
    )


def the_chain() -> PageChain:
    """Name the pages of a prompt."""
    identity = PageIdentity(b"bench", page_size=PAGE_SIZE, model_epoch="bench", kv_scheme="bf16")
    chain = PageChain(identity, identity.root(cache_salt=""))
    chain.extend(list(range(NUM_PAGES * PAGE_SIZE)))
    return chain


def layout_of(shape: str) -> KvLayout:
    """Describe the pages of a model of some shape."""
    layers, kv_heads, head_dim = SHAPES[shape]
    group = GroupLayout(layers, kv_heads, head_dim, "uint16", scales=False)
    return KvLayout((group,), PAGE_SIZE, "bench", "bfloat16")


@contextlib.contextmanager
def served(shape: str):
    """Start the process that gives; yield its address, and what asks for its memory in MiB."""
    command, pipe = [sys.executable, "-m", "bench.kv_transports", "--serve", shape], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, said = process.stdin, process.stdout

        def ask_memory() -> int:
            told.write("memory\n")
            told.flush()
            return int(said.readline())

        try:
            yield f"127.0.0.1:{int(said.readline())}", ask_memory
        finally:
            process.kill()


class Computed:
    """A worker that has computed everything already."""

    role = "prefill"

    def __init__(self, shape: str):
        self.layout, end = layout_of(shape), JaxEnd("127.0.0.1")
        giving = Giving(end, max_bytes=MAX_BYTES, keep_s=KEEP_S)
        self.direct = Direct(end, giving, Taking(end, max_stuck=MAX_STUCK))
        self.offers = Offers(epoch="bench", lease_s=KEEP_S, max_bytes=MAX_BYTES, on_end=print)
        chain = the_chain()
        parents, size = (chain.root, *chain.keys), self.layout.page_bytes
        named = zip(chain.keys, parents, chain.packed, strict=False)
        self._records = [record_of(*each, bytes([at]) * size) for at, each in enumerate(named)]

    def begin(self, ask: PrefillAsk) -> Offer:
        """Publish all at once."""
        offer = self.offers.open(
            ask.request_id,
            first_page=0,
            num_pages=NUM_PAGES,
            page_bytes=self.layout.page_bytes,
            deadline_s=ask.deadline_s,
        )
        for at, record in enumerate(self._records):
            self.offers.publish(offer, at, record)
        return offer


async def serve(shape: str) -> None:
    """Serve until standard input ends, and answer each of its lines with the memory."""
    computed, server = Computed(shape), aio.server()
    described = pb.DESCRIPTOR.services_by_name["KvTransfer"]
    service = KvService(lambda: computed)
    door = Door(service, metrics=Metrics(), max_request_s=PATIENCE_S, described=described)
    server.add_generic_rpc_handlers((door.handler(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    while await asyncio.to_thread(sys.stdin.readline):
        print(memory(), flush=True)


def memory() -> int:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // MIB


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--serve", choices=SHAPES, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.serve:
        asyncio.run(serve(parsed.serve))
    else:
        main(parsed)
