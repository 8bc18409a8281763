"""Whoever dies, stands still or garbles bytes under load: every request is answered, and rightly.

Two prefill workers, two decode workers and two routers, as processes.  Each round sends requests,
greedy and seeded, streamed and at once, and does something bad at a random moment.  What completes
has the tokens of one engine; what does not ends with the typed error of its deadline, in time, and
is rare.  Afterwards nobody holds anything for anybody, and nobody has to be started again but who
was killed.
"""

import asyncio
import contextlib
import functools
import random
import signal
from collections.abc import Iterable, Iterator

import pytest

from tests.e2e.fleet import (
    NUM_REQUESTS,
    SPREAD_S,
    Fleet,
    ask_all,
    check_answers,
    metric,
    requests_of,
    started_fleet,
)
from tests.engine.workload import SMALL, small_engine
from tests.fault_proxy import Fault, FaultProxy
from tests.serving.cluster import Member

MODEL = "rtp-tiny"
STOPPED_S = 5.0
DELAY_S = 2.0
MOST_LATE = 0.01  # of requests whose deadline is TIMES the median
TIMES = 10
PARTS, ROUNDS = 4, 5  # so that each fault is there 20 times
KINDS = ("reset", "truncate", "flip", "delay")

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def options_of(cache, **more) -> dict[str, object]:
    """Say how workers are started."""
    given = {"compile_cache": cache, "transfer_min_tokens": 0, "stall_timeout_s": 30}
    return {**SMALL, **given, "transfer_lease_s": 2.0, **more}


@pytest.fixture(scope="module")
def fused(program_cache):
    """One engine that does everything by itself."""
    with small_engine(MODEL, program_cache) as engine:
        yield engine


@pytest.fixture(scope="module")
def fleet(program_cache):
    with started_fleet(MODEL, options_of(program_cache)) as made:
        yield made


@pytest.fixture(scope="module")
def forgetful(program_cache):
    """A fleet whose leases are over before a slow reader comes again, which it does."""
    slow = {"transfer_lease_s": 0.05, "transfer_stall_s": 3.0}
    options = options_of(program_cache, **slow, metrics_port=0)
    with started_fleet(MODEL, options, num_routers=1) as made:
        yield made


@pytest.fixture(scope="module")
def timeout_s(fleet, fused):
    """Deadlines: so many times what a request takes when all is well."""
    name = "calm"
    work = requests_of(name)
    through = [worker.address for worker in fleet.prefills]
    answers = asyncio.run(ask_all(fleet, work, name, timeout_s=None, prefill_at=through))
    assert check_answers(answers, work, fused) == 0
    assert answers.fetched_tokens > 1000
    return TIMES * answers.median_s


def play(fleet, fused, name, timeout_s, part, *, disturb_at=None, fault=None) -> None:
    """Play some rounds, each of which goes wrong at a random moment.

    Args:
      disturb_at: does something bad with a random generator; returns whom it has killed.
      fault: what begins to happen to the connections on which prefill workers give pages away.
        Without one, requests fetch pages from where the router says, if it says so, in every second
        round, and in the others all from prefill workers.
    """
    late = fetched = 0
    applied = -num_applied(fleet.proxies)
    direct = [worker.address for worker in fleet.prefills]
    count, spread_s = NUM_REQUESTS, SPREAD_S
    if fault is not None and fault.kind == "delay":  # some are to come behind what is late
        count, spread_s = 2 * count, 2 * DELAY_S
    for number in range(part * ROUNDS, (part + 1) * ROUNDS):
        title = f"{name}-{number}"
        rng, work, dead = random.Random(title), requests_of(title, count), []
        with new_proxies(fleet) as proxies:
            through = [proxy.address for proxy in proxies] if fault else direct * (number % 2)

            async def disturb(rng=rng, dead=dead, proxies=proxies):
                await asyncio.sleep(rng.random() * spread_s * (0.3 if fault else 1.5))
                for proxy in proxies if fault else ():
                    proxy.faults = (fault,)
                if disturb_at:
                    dead += await disturb_at(rng) or []

            answers = asyncio.run(
                ask_all(
                    fleet,
                    work,
                    title,
                    timeout_s=timeout_s,
                    prefill_at=through,
                    disturb=disturb,
                    spread_s=spread_s,
                )
            )
            for proxy in (*proxies, *fleet.proxies):
                proxy.faults = ()
            late += check_answers(answers, work, fused)
            fleet.check_empty(dead)
            applied += num_applied(proxies)
            fetched += answers.fetched_tokens
        fleet.restore()
    applied += num_applied(fleet.proxies)
    assert late <= max(MOST_LATE * ROUNDS * count, 1)
    assert applied > 0 or not (fault or fleet.through_proxies), "nothing went wrong"
    assert not fault or fetched > 200, fetched


def num_applied(proxies: Iterable[FaultProxy]) -> int:
    """Count the chunks that something was done to."""
    return sum(sum(proxy.applied.values()) for proxy in proxies)


@contextlib.contextmanager
def new_proxies(fleet: Fleet) -> Iterator[list[FaultProxy]]:
    """Stand before the prefill workers, at addresses of which nobody has a bad memory."""
    with contextlib.ExitStack() as stack:
        ports = [int(worker.address.rpartition(":")[2]) for worker in fleet.prefills]
        yield [stack.enter_context(FaultProxy(port)) for port in ports]


async def kill(members: list[Member], rng: random.Random) -> list[Member]:
    """End somebody without a word."""
    (victim,) = rng.sample(members, 1)
    victim.kill()
    victim.end()
    return [victim]


async def stop(members: list[Member], rng: random.Random) -> None:
    """Let somebody stand still for a while, with all connections open."""
    (victim,) = rng.sample(members, 1)
    victim.kill(signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        victim.kill(signal.SIGCONT)


def members_of(fleet: Fleet, who: str) -> list[Member]:
    """Say who may be hit; of the routers, the one that clients use first."""
    return {"prefill": fleet.prefills, "decode": fleet.decodes, "router": fleet.routers[:1]}[who]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("who", ["prefill", "decode", "router"])
def test_somebody_is_killed(fleet, fused, timeout_s, who, part):
    disturb = functools.partial(kill, members_of(fleet, who))
    play(fleet, fused, f"kill-{who}", timeout_s, part, disturb_at=disturb)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("who", ["prefill", "decode", "router"])
def test_somebody_stands_still(fleet, fused, timeout_s, who, part):
    disturb = functools.partial(stop, members_of(fleet, who))
    play(fleet, fused, f"stop-{who}", timeout_s, part, disturb_at=disturb)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_sixteenth_chunk_of_the_transfer_is_bad(fleet, fused, timeout_s, kind, part):
    fault = Fault(kind=kind, every=16, delay_s=DELAY_S)
    play(fleet, fused, kind, timeout_s, part, fault=fault)


@pytest.fixture(scope="module")
def distant(program_cache):
    """A fleet whose routers, too, reach workers over a bad network."""
    options = options_of(program_cache)
    with started_fleet(MODEL, options, num_routers=1, through_proxies=True) as made:
        yield made


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", ["reset", "truncate", "delay"])
def test_routers_lose_their_workers_again_and_again(distant, fused, kind, part):
    """Answers and reports break off, too, or are late, but by less than makes a worker silent.

    No bit is flipped, since tokens carry no digest.
    """

    async def disturb(rng: random.Random) -> None:
        for proxy in distant.proxies:
            proxy.faults = (Fault(kind=kind, every=64, delay_s=1.0, after=rng.randrange(64)),)

    play(distant, fused, f"distant-{kind}", None, part, disturb_at=disturb)


@pytest.mark.parametrize("part", range(PARTS))
def test_leases_are_over_before_a_reader_comes(forgetful, fused, part):
    fault, before = Fault(kind="delay", every=3, delay_s=DELAY_S), num_expired(forgetful)
    play(forgetful, fused, "lease", None, part, fault=fault)  # which sees that nothing is held
    assert num_expired(forgetful) > before


def num_expired(fleet: Fleet) -> float:
    """Count the offers of prefill workers that their leases ended."""
    return sum(metric(worker, "rtp_jax:offers_expired_total") for worker in fleet.prefills)
