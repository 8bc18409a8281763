"""A prefill worker and a decode worker on one model, in one process: two engines, a real server."""

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rtp_jax import Engine
from rtp_jax.errors import RtpError
from rtp_jax.outputs import RequestOutput
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.client import Client
from tests.engine.workload import SMALL, Case, check_idle, small_engine
from tests.serving.started import Running, Servers


@dataclasses.dataclass
class Pair:
    """Two workers; `fused` is the one that prefills, used by itself."""

    prefill: Engine
    decode: Engine
    running: Running

    @property
    def fused(self) -> Engine:
        """An engine that does everything by itself."""
        return self.prefill

    @property
    def address(self) -> str:
        """Where the prefill worker listens."""
        return self.running.address

    def forget(self) -> None:
        """Empty the prefix caches, and wait until no offer is left."""
        assert until(lambda: self.prefill.transfer.offers.counts.open == 0)
        for engine in (self.prefill, self.decode):
            engine.reset_prefix_cache()

    def check_idle(self) -> None:
        """Nothing runs, waits, or is held for anybody."""
        assert until(lambda: self.prefill.transfer.offers.counts.open == 0)
        assert self.prefill.transfer.offers.counts.bytes == 0
        for engine in (self.prefill, self.decode):
            check_idle(engine)


@contextlib.contextmanager
def started_pair(
    model: Path | str,
    cache: Path,
    *,
    of_prefill: Mapping[str, object] = MappingProxyType({}),
    of_decode: Mapping[str, object] = MappingProxyType({}),
    **options: object,
) -> Iterator[Pair]:
    """Start two workers that hold nothing when they end; each may have options of its own."""
    servers = Servers()
    options = {"transfer_min_tokens": 0, "transfer_lease_s": 2.0, **options}
    with (
        small_engine(model, cache, role="both", **options, **of_prefill) as prefill,
        small_engine(model, cache, role="decode", **options, **of_decode) as decode,
    ):
        pair = Pair(prefill, decode, servers.start(prefill))
        try:
            yield pair
            pair.check_idle()
        finally:
            servers.stop()


@contextlib.contextmanager
def prefill_process(
    model: Path, cache: Path, *, port: str = "0", **options: object
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a prefill worker as a process; yield it and its address."""
    command = [sys.executable, "-m", "rtp_jax.serving.main", "serve", str(model), "--port", port]
    for name, value in {**SMALL, "compile_cache": cache, "role": "prefill", **options}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdout=pipe, stderr=none, text=True) as process:
        try:
            assert process.stdout is not None
            start = "listening on "
            lines = (line for line in process.stdout if line.startswith(start))
            address = next(lines).removeprefix(start).strip()
            threading.Thread(target=process.stdout.read, daemon=True).start()
            with Client(address) as client:
                client.wait_until_serving(timeout_s=120)
            yield process, address
        finally:
            process.kill()


async def through(
    engine: Engine, case: Case, addresses: Sequence[str], **options: object
) -> RequestOutput | RtpError:
    """Run one request with prefill workers to ask; return what came of it."""
    params = dataclasses.replace(case.params, output_kind=OutputKind.FINAL_ONLY)
    last = None
    outputs = engine.stream_async(case.prompt, params, prefill_at=addresses, **options)
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            last = output
    assert last is not None
    return last.error or last


def run_through(
    engine: Engine, work: Sequence[Case], addresses: Sequence[str], **options: object
) -> list[RequestOutput | RtpError]:
    """Run requests together."""

    async def run() -> list[RequestOutput | RtpError]:
        return await asyncio.gather(*(through(engine, c, addresses, **options) for c in work))

    return asyncio.run(run())


def until(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not (so := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return so
