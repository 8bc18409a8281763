"""A request is given up in every phase that it can be in, in every way: nothing of it is left.

    client -> [ proxy ] -> router -> decode worker -> [ proxy ] -> prefill worker

All run in this process, so that steps can be counted: an engine that hears that a request is not
wanted any more has given its pages back within two steps.  A neighbour decodes meanwhile, and gets
its own tokens.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
from grpc import aio

from rtp_jax import SamplingParams
from rtp_jax.cache.rates import LinearCost
from rtp_jax.serving.client_messages import RequestOptions, generate_request
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub
from tests.e2e.pair import Pair, started_pair
from tests.e2e.watched_engine import Watched
from tests.engine.workload import Case, run_alone
from tests.fault_proxy import Fault, FaultProxy
from tests.serving.routers import RunningRouter, start_router
from tests.serving.started import Servers
from tests.standstills import standstills

MOST_ATTEMPTS = 3
LEASE_S = 1.0
LATE_S = 1.0  # by which the error of a deadline may come after it
SHORT_S, TIMEOUT_S = 1.5, 30.0
WAYS = ("cancel", "abort", "deadline", "close")


@dataclass
class Stage:
    """Everything between a client and the pages of its prompt."""

    pair: Pair
    decode: Watched
    prefill: Watched
    router: RunningRouter
    door: FaultProxy  # before the router, for the request that is given up
    kv: FaultProxy  # before the prefill worker
    decode_address: str
    name: str = ""  # of that request

    @property
    def num_tokens(self) -> int:
        """Tokens that have come back."""
        journey = self.router.engine.journeys.get(self.name)
        return 0 if journey is None else journey.num_output_tokens

    @property
    def num_open(self) -> int:
        """Offers of the prefill worker."""
        return self.pair.prefill.transfer.offers.counts.open

    @property
    def is_parked(self) -> bool:
        """True while the decode worker waits for pages."""
        return self.decode.scheduler.num_parked > 0

    def let_go(self) -> None:
        """Let the router lose its worker's calls; they go on behind what has come."""
        link = self.router.engine.workers.links[self.decode_address]
        self.router.loop.call_soon_threadsafe(link.let_go, "a test says so")

    def go_on(self) -> None:
        """End everything that holds requests up."""
        self.decode.step_s = self.prefill.step_s = 0.0
        self.decode.gate.set()
        self.kv.stopped, self.kv.faults = False, ()


@pytest.fixture(scope="module")
def stage(tiny_model, program_cache, tmp_path_factory):
    quotas = tmp_path_factory.mktemp("quotas") / "quotas.yaml"
    quotas.write_text("one: {max_in_flight: 1}\n")
    options = {"served_model_name": "fake", "transfer_lease_s": LEASE_S}
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(started_pair(tiny_model, program_cache, **options))
        pair.prefill.transfer.set_role("prefill")
        servers = Servers()
        stack.callback(servers.stop)
        address = servers.start(pair.decode).address
        router = start_router(tiny_model, [address, pair.address], quotas=str(quotas))
        stack.callback(router.stop)
        door = stack.enter_context(FaultProxy(router.server.port))
        kv = stack.enter_context(FaultProxy(pair.running.server.port))
        watched = Watched(pair.decode), Watched(pair.prefill)
        yield Stage(pair, *watched, router, door, kv, address)


# ---- phases: what brings a request there and keeps it there, and how one sees that it is there


@contextlib.contextmanager
def queued(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.decode.step_s = 0.01  # of the neighbour, whose tenant may have one request at a time
    yield lambda: stage.router.engine.num_waiting == 1


@contextlib.contextmanager
def not_offered(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.kv.stopped = True
    yield lambda: stage.is_parked and stage.num_open == 0


@contextlib.contextmanager
def computed(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.prefill.step_s = 0.4
    yield lambda: stage.num_open == 1 and stage.prefill.scheduler.num_running == 1


@contextlib.contextmanager
def pulled(stage: Stage) -> Iterator[Callable[[], bool]]:
    num_bytes = 18 * stage.pair.prefill.transfer.layout.page_bytes
    stage.kv.faults = (Fault(kind="throttle", bytes_per_s=num_bytes / 2.5, after=3),)
    counts = stage.pair.prefill.transfer.offers.counts
    published = counts.published
    yield lambda: counts.published >= published + 18 and stage.is_parked and stage.num_open == 1


@contextlib.contextmanager
def arrived(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.prefill.step_s, stage.decode.step_s = 0.01, 0.03
    fetches = stage.pair.decode._parts.below.hierarchy._fetches

    def reached() -> bool:
        if stage.is_parked:
            stage.decode.gate.clear()  # the neighbour's step lasts
        return any(fetch.done and len(fetch.loaded()) >= 18 for fetch in list(fetches))

    yield reached


@contextlib.contextmanager
def decoding(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.decode.step_s = 0.02
    yield lambda: stage.num_tokens >= 3


@contextlib.contextmanager
def resuming(stage: Stage) -> Iterator[Callable[[], bool]]:
    stage.decode.step_s = 0.02
    tokens = 0

    def reached() -> bool:
        nonlocal tokens
        journey = stage.router.engine.journeys.get(stage.name)
        if journey is None:
            return False
        if stage.num_tokens >= 3 and not tokens:
            tokens = stage.num_tokens
            stage.let_go()
        group = stage.decode.scheduler._roster.groups.get(stage.name)
        return journey.num_lost > 0 and group is not None and any(group.request.resumed)

    yield reached


PHASES = {
    "queued": queued,
    "not offered": not_offered,
    "computed": computed,
    "pulled": pulled,
    "arrived": arrived,
    "decoding": decoding,
    "resuming": resuming,
}


# ---- one request that is given up


def prompts(rng: random.Random) -> tuple[Case, Case]:
    """Make a request with a prompt of nineteen pages or so, and a neighbour with a short one."""
    long = [rng.randrange(3, 440) for _ in range(rng.randrange(290, 297))]
    short = [rng.randrange(3, 440) for _ in range(10)]
    seed = rng.randrange(1000)
    return (
        Case(long, SamplingParams(max_tokens=20, ignore_eos=True, seed=seed, temperature=1.0)),
        Case(short, SamplingParams(max_tokens=40, ignore_eos=True, seed=seed, temperature=1.0)),
    )


async def answer(stub: GenerationStub, message: pb.GenerateRequest, *, stream: bool):
    """Ask, and return the ids that came; an answer that says that it was aborted is no answer."""
    parts: list[pb.Completion] = []
    if stream:
        async for frame in stub.GenerateStream(message, timeout=TIMEOUT_S):
            parts += frame.completions
    else:
        parts += (await stub.Generate(message, timeout=TIMEOUT_S)).completions
    if any(part.finish_reason == pb.FINISH_REASON_ABORT for part in parts):
        raise asyncio.CancelledError
    return [token_id for part in parts for token_id in part.token_ids]


async def ending(call: Awaitable[list[int]]) -> tuple[list[int] | BaseException, float]:
    """Return what came of a call, and when."""
    try:
        return await call, time.monotonic()
    except (asyncio.CancelledError, aio.AioRpcError) as error:
        return error, time.monotonic()


async def soon(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until something is so."""
    began_s = time.monotonic()
    while not condition():
        now_s = time.monotonic()
        late = now_s - began_s > within_s and standstills().spent_s(began_s, now_s) > within_s
        assert not late, "it never came to that"
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def stub_at(address: str) -> AsyncIterator[GenerationStub]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with aio.insecure_channel(address, options) as channel:
        yield GenerationStub(channel)


class Missed(Exception):
    """A request did not come to a phase, or only in passing: on a busy machine."""


async def give_up(stage: Stage, phase: str, way: str, rng: random.Random) -> None:
    """Send a request, give it up in a phase, and look what is left of it."""
    victim, neighbour = prompts(rng)
    limited = way == "deadline"
    options = RequestOptions(
        request_id=stage.name,
        timeout_s=SHORT_S if limited else TIMEOUT_S,
        prefill_at=[stage.kv.address],
    )
    message = generate_request(victim.prompt, victim.params, options)
    beside = generate_request(
        neighbour.prompt, neighbour.params, RequestOptions(request_id=f"{stage.name}-beside")
    )
    if phase == "queued":
        message.tenant = beside.tenant = "one"
    async with stub_at(stage.door.address) as stub, stub_at(stage.router.address) as other:
        with PHASES[phase](stage) as reached:
            kept = asyncio.ensure_future(answer(other, beside, stream=True))
            await soon(lambda: stage.decode.has(f"{stage.name}-beside"))
            due_s = time.monotonic() + SHORT_S
            call = answer(stub, message, stream=rng.random() < 0.5)
            asked = asyncio.ensure_future(ending(call))
            try:
                await soon(lambda: reached() or asked.done(), 5.0)
                assert not asked.done(), "it ended before that"
            except AssertionError as missed:
                stage.go_on()
                asked.cancel()
                await asyncio.gather(asked, kept, return_exceptions=True)
                raise Missed(str(missed)) from missed
            await asyncio.sleep(rng.random() * 0.01)
            if way == "cancel":
                asked.cancel()
            elif way == "abort":
                await other.Abort(pb.AbortRequest(request_ids=[stage.name]))
            elif way == "close":
                stage.door.reset_all()
            else:  # slow enough not to be ready in time, should it go on alone
                stage.decode.step_s = 0.1
                await asyncio.sleep(due_s - time.monotonic())
            with contextlib.suppress(AssertionError):  # it may wait for the way to be free
                await soon(lambda: stage.name in stage.decode.heard, 0.2)
            stage.go_on()
        outcome, seen_s = await asked
        if limited and isinstance(outcome, list) and seen_s < due_s:
            await asyncio.gather(kept, return_exceptions=True)
            raise Missed("it was ready in time")
        check_end(outcome, way)
        assert not limited or standstills().spent_s(due_s, seen_s) < LATE_S
        await soon(lambda: stage.num_open == 0, LEASE_S + LATE_S)
        await soon(lambda: stage.name not in stage.router.engine.journeys, LATE_S)
        ids = await kept
    assert phase == "queued" or stage.name in (stage.decode.gone if limited else stage.decode.heard)
    assert phase != "computed" or limited or stage.prefill.heard
    stage.pair.check_idle()
    stage.decode.check({stage.name: due_s} if limited else {})
    stage.prefill.check({})
    stage.pair.forget()
    (alone,) = run_alone(stage.pair.fused, [neighbour])
    assert ids == alone.outputs[0].token_ids


def check_end(error: list[int] | BaseException, way: str) -> None:
    """Hold how a call ended against how it was given up."""
    assert isinstance(error, BaseException), "it was answered"
    if not isinstance(error, aio.AioRpcError):
        assert way in ("cancel", "abort")
        return
    code, words = error.code(), error.details() or ""
    if way == "deadline":
        assert (code, "RTPJ-4001" in words) == (grpc.StatusCode.DEADLINE_EXCEEDED, True), words
    else:
        assert code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE), words


def run(stage: Stage, phase: str, way: str, seed: int) -> None:
    missed = None
    for attempt in range(MOST_ATTEMPTS):
        stage.name = f"{phase}-{way}-{seed}-{attempt}".replace(" ", "-")
        stage.pair.forget()
        # Slow steps taught it that computing takes long; it would not wait for pages any more.
        stage.pair.decode._parts.below.hierarchy.prefill_cost = LinearCost()
        try:
            asyncio.run(give_up(stage, phase, way, random.Random(stage.name)))
        except Missed as why:
            missed = why
            stage.pair.check_idle()
            for watched in (stage.decode, stage.prefill):
                watched.forget()
            continue
        finally:
            stage.go_on()
        return
    pytest.fail(f"{MOST_ATTEMPTS} requests were never {phase}, the last one because: {missed}")


@pytest.mark.parametrize(
    ("phase", "way"), [(phase, WAYS[at % 4]) for at, phase in enumerate(PHASES)]
)
def test_a_request_given_up_leaves_nothing(stage, phase, way):
    run(stage, phase, way, 0)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_request_given_up_leaves_nothing_twenty_times(stage, phase, way):
    for seed in range(1, 21):
        run(stage, phase, way, seed)
