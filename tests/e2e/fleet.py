"""Two prefill workers, two decode workers and routers as processes, and what is asked of them.

Members are `tests.serving.cluster.Member`s; here are their roles, the proxies before the prefill
workers, a load of requests whose answers are known, and the question whether anything is left.
"""

import asyncio
import contextlib
import functools
import random
import re
import statistics
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rtp_jax import Engine, SamplingParams
from rtp_jax.errors import DeadlineExceeded, RtpError
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.routed import seed_of
from rtp_jax.serving.status_command import ask
from rtp_jax.wire import generation_pb2
from rtp_jax.wire import router_pb2 as pb
from tests.e2e.pair import until
from tests.engine.workload import Case, run_together
from tests.fault_proxy import FaultProxy
from tests.serving.cluster import START_S, Member, free_ports
from tests.standstills import standstills

NUM_REQUESTS = 24
SPREAD_S = 1.0  # within which the requests of a round usually come
LATE_S = 1.0  # by which an error may come after its deadline
PATIENCE_S = 10.0  # until workers must be empty


class Fleet:
    """Workers with roles, and routers side by side."""

    def __init__(
        self,
        model: str,
        options: dict[str, object],
        *,
        num_routers: int,
        through_proxies: bool,
        stack: contextlib.ExitStack,
    ):
        """Prepare; proxies before all workers start at once and end with `stack`."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        ports = free_ports(4 + num_routers)
        workers = [
            Member(f"{role} {port}", port, ["serve", model, "--role", role, *flags])
            for role, port in zip(("prefill",) * 2 + ("decode",) * 2, ports, strict=False)
        ]
        self.prefills, self.decodes = workers[:2], workers[2:]
        self.proxies = [stack.enter_context(FaultProxy(port)) for port in ports[:4]]
        self.through_proxies = through_proxies
        known = self.proxies if through_proxies else workers
        to = [part for each in known for part in ("--worker", each.address)]
        to += ["--worker-silent-s", "1.5"]
        self.routers = [Member(f"router {port}", port, ["route", model, *to]) for port in ports[4:]]

    @property
    def workers(self) -> list[Member]:
        """All workers."""
        return [*self.prefills, *self.decodes]

    @property
    def targets(self) -> list[str]:
        """Addresses of the routers."""
        return [router.address for router in self.routers]

    def start(self) -> None:
        """Start everybody; the first worker compiles what the others then load."""
        self.workers[0].start().wait()
        self.restore()

    def restore(self) -> None:
        """Start whoever has ended, and wait until everybody sees everybody."""
        members = [*self.workers, *self.routers]
        for member in members:
            if member.popen is None or member.popen.poll() is not None:
                member.start()
        for member in members:
            member.wait()
        assert until(lambda: all(map(self._sees_all, self.targets)), START_S)

    def stop(self) -> None:
        """End all processes."""
        for member in (*self.routers, *self.workers):
            member.stop()

    def check_empty(self, dead: Sequence[Member] = ()) -> None:
        """Nothing runs, waits or is held for anybody, at whoever lives; nobody else has died."""
        for member in (*self.workers, *self.routers):
            assert member.popen is not None
            assert member in dead or member.popen.poll() is None, (member.name, member.said[-30:])
        for worker in self.workers:
            if worker not in dead:
                empty = until(functools.partial(_is_empty, worker.address), PATIENCE_S)
                assert empty, (worker.name, loads(worker.address))
        for router in self.routers:
            if router not in dead:
                open_there = ask(router.address)
                assert (open_there.num_open, open_there.num_waiting) == (0, 0), open_there

    def _sees_all(self, router: str) -> bool:
        try:
            workers = ask(router).workers
        except RtpError:
            return False
        serving = [each for each in workers if each.state == pb.WorkerStatus.STATE_SERVING]
        return len(serving) == len(self.workers)


def loads(address: str) -> generation_pb2.GetLoadsResponse:
    """Ask a worker how busy it is."""
    with Client(address) as client:
        return client.loads()


def metric(member: Member, name: str) -> float:
    """Ask a worker that has a `metrics_port` for one of its numbers."""
    said = "metrics on "
    url = [line for line in member.said if line.startswith(said)][-1].removeprefix(said)
    with urllib.request.urlopen(url, timeout=5) as answer:
        found = re.search(rf"^{name}\{{.*\}} (.*)$", answer.read().decode(), re.MULTILINE)
    assert found is not None, f"{member.name} does not count {name}"
    return float(found[1])


def _is_empty(address: str) -> bool:
    try:
        busy = loads(address)
    except RtpError:
        return False
    nobody = busy.num_running + busy.num_waiting + busy.num_open_requests + busy.num_offers == 0
    return nobody and busy.num_free_pages + busy.num_cached_pages == busy.num_pages


@contextlib.contextmanager
def started_fleet(
    model: str,
    options: dict[str, object],
    *,
    num_routers: int = 2,
    through_proxies: bool = False,
) -> Iterator[Fleet]:
    """Start a fleet and end it; routers may know its workers by the addresses of proxies."""
    with contextlib.ExitStack() as stack:
        fleet = Fleet(
            model, options, num_routers=num_routers, through_proxies=through_proxies, stack=stack
        )
        stack.callback(fleet.stop)
        fleet.start()
        yield fleet


def requests_of(name: str, count: int = NUM_REQUESTS) -> list[Case]:
    """Make requests, of which one half is greedy; of the others, some get a seed from their id.

    Prompts differ from name to name, so that prefix caches do not save the work.
    """
    rng = random.Random(f"requests of {name}")
    made = []
    for i in range(count):
        ids = [rng.randrange(5, 400) for _ in range(rng.randrange(20, 250))]
        params = SamplingParams(
            max_tokens=rng.randrange(20, 64),
            temperature=float(i % 2),
            seed=rng.getrandbits(31) if i % 4 == 1 else seed_of(f"{name}-{i}"),
            ignore_eos=True,
            n=2 if i % 8 == 5 else 1,
        )
        made.append(Case(ids, params))
    return made


@dataclass(frozen=True)
class Failure:
    """How a request failed, by when it was due, and when that was seen, of `time.monotonic`."""

    error: RtpError
    due_s: float
    seen_s: float


@dataclass
class Answers:
    """What became of the requests of a round."""

    tokens: dict[int, list[list[int]]] = field(default_factory=dict)  # of those that completed
    errors: dict[int, Failure] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of those that completed
    fetched_tokens: int = 0  # of prompts, from prefill workers

    @property
    def median_s(self) -> float:
        """What a request takes."""
        return statistics.median(self.seconds)


async def ask_all(
    fleet: Fleet,
    work: Sequence[Case],
    name: str,
    *,
    timeout_s: float | None,
    prefill_at: Sequence[str] = (),
    disturb=None,
    spread_s: float = SPREAD_S,
) -> Answers:
    """Send requests spread over a while, and disturb them; returns when all have ended."""
    rng, answers = random.Random(name), Answers()

    async def one(client: AsyncClient, number: int, case: Case) -> None:
        await asyncio.sleep(rng.random() * spread_s)
        began_s = time.monotonic()
        params = case.params
        if params.seed == seed_of(f"{name}-{number}"):
            params = replace(params, seed=None)  # whoever serves it finds the same
        options = RequestOptions(
            request_id=f"{name}-{number}", timeout_s=timeout_s, prefill_at=prefill_at
        )
        ids: list[list[int]] = [[] for _ in range(params.n)]
        try:
            if number % 3:
                output = None
                async for output in client.stream(case.prompt, params, options):
                    for part in output.outputs:
                        ids[part.index] += part.token_ids
            else:
                output = await client.generate(case.prompt, params, options)
                ids = [part.token_ids for part in output.outputs]
        except RtpError as error:
            due_s = began_s + (timeout_s or 0.0)
            answers.errors[number] = Failure(error, due_s, time.monotonic())
        else:
            answers.tokens[number] = ids
            answers.fetched_tokens += output.cached_tokens.get("peer", 0) if output else 0
            answers.seconds.append(time.monotonic() - began_s)

    async with AsyncClient(fleet.targets) as client:
        tasks = [asyncio.ensure_future(one(client, i, case)) for i, case in enumerate(work)]
        if disturb is not None:
            await disturb()
        await asyncio.gather(*tasks)
    return answers


def check_answers(answers: Answers, work: Sequence[Case], fused: Engine) -> int:
    """Hold answers against those of one engine; return how many requests ran out of time."""
    right = run_together(fused, list(work))
    for number, tokens in answers.tokens.items():
        expected = [part.token_ids for part in right[number].outputs]
        assert tokens == expected, (number, work[number].params)
    for number, failure in answers.errors.items():
        assert isinstance(failure.error, DeadlineExceeded), (number, failure)
        late_s = standstills().spent_s(failure.due_s, failure.seen_s)
        assert late_s < LATE_S, (number, late_s, failure)
    return len(answers.errors)
