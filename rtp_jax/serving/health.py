"""Is this server fit for requests?  SERVING means that tokens come out, not that a process lives.

SERVING begins after the weights are loaded, the steps are compiled and one canary generation came
back.  From then on a watchdog looks at the engine's loop: one that is stuck turns health to
NOT_SERVING, and all stacks go to standard error; one that moves again turns it back.  A dead loop,
or one that is stuck for twice the time, ends the process, for its supervisor to restart it.  An
engine that holds what only the end of its process gives back drains first.
"""

import asyncio
import faulthandler
import logging
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import UnsupportedOperation

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health  # pyright: ignore[reportAttributeAccessIssue]

from rtp_jax.errors import Internal
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.serving.door import SERVICE
from rtp_jax.serving.served import Served, last

logger = logging.getLogger(__name__)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CANARY_TIMEOUT_S = 60.0
CANARY = SamplingParams(temperature=0.0, max_tokens=2, output_kind=OutputKind.FINAL_ONLY)


class Health:
    """What is said about the health of this server, over gRPC and to the HTTP probes."""

    def __init__(self):
        self.servicer = grpc_health.HealthServicer()
        self.serving = False
        self.reason = "the model is being loaded or compiled"
        self.stalled = False
        self.draining = False  # for good: it never says SERVING again

    async def start(self) -> None:
        """Begin as NOT_SERVING: grpc's own beginning is SERVING."""
        await self.say(False, self.reason)

    async def say(self, serving: bool, reason: str) -> None:
        """Say whether requests are welcome, and why not."""
        self.serving, self.reason = serving, reason
        for service in ("", SERVICE.full_name):
            await self.servicer.set(service, SERVING if serving else NOT_SERVING)


async def canary(engine: Served, *, timeout_s: float = CANARY_TIMEOUT_S) -> float:
    """Generate two tokens and return the seconds that it took.

    Raises:
      Internal: nothing came, or not within the time.
    """
    began = time.monotonic()
    params = CANARY if engine.tokenizer else _without_text(CANARY)
    deadline_s, name = time.monotonic() + timeout_s, f"canary-{secrets.token_hex(4)}"
    output = await last(engine.stream_async([0], params, request_id=name, deadline_s=deadline_s))
    if output.error is not None or not output.outputs[0].token_ids:
        reason = "nothing came" if output.error is None else str(output.error)
        raise Internal(
            f"RTPJ-5301 CANARY_FAILED: a first generation of 2 tokens failed: {reason}. The log"
            " has more; `rtp-jax doctor` checks the installation."
        )
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Watchdog:
    """Looks at the engine's loop again and again."""

    engine: Served
    health: Health
    stall_timeout_s: float
    on_death: Callable[[str], None]  # told why the process should end
    on_retirement: Callable[[str], None]  # told why it should drain and end
    period_s: float = 0.25

    async def run(self) -> None:
        """Watch until cancelled, or until the loop is past help."""
        while True:
            await asyncio.sleep(self.period_s)
            if not self.engine.alive:
                await self._died("its loop has ended")
                return
            stuck_s = time.monotonic() - self.engine.last_progress_s()
            if stuck_s > 2 * self.stall_timeout_s:
                await self._died(f"its loop is stuck for {stuck_s:.0f} s")
                return
            if (reason := _retires(self.engine)) is not None and not self.health.draining:
                self.on_retirement(reason)
            await self._look(stuck_s)

    async def _look(self, stuck_s: float) -> None:
        stalled = stuck_s > self.stall_timeout_s
        if stalled and not self.health.stalled:
            self.health.stalled = True
            logger.error("the engine's loop is stuck for %.1f s; stacks follow", stuck_s)
            dump_stacks()
            await self.health.say(False, f"the engine's loop is stuck for {stuck_s:.1f} s")
        elif self.health.stalled and not stalled:
            self.health.stalled = False
            logger.warning("the engine's loop moves again")
            if not self.health.draining:
                await self.health.say(True, "")

    async def _died(self, reason: str) -> None:
        logger.error("the engine is lost: %s; stacks follow", reason)
        dump_stacks()
        await self.health.say(False, f"the engine is lost: {reason}")
        self.on_death(reason)


def _retires(engine: Served) -> str | None:
    return None if engine.transfer is None else engine.transfer.retires


def dump_stacks() -> None:
    """Write the stacks of all threads to standard error, if it is a real file."""
    try:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    except UnsupportedOperation:  # standard error was replaced, for example by a test
        logger.error("standard error cannot take stacks")


def _without_text(params: SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=params.temperature,
        max_tokens=params.max_tokens,
        output_kind=params.output_kind,
        detokenize=False,
    )
