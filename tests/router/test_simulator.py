"""The simulator: requests and pages are conserved, faults included; times are what steps take."""

import random

import pytest

from rtp_jax.router.facts import PageHashing, Role, WorkerFacts
from rtp_jax.router.predictor import step_seconds
from rtp_jax.router.router import Router
from rtp_jax.router.settings import RouterSettings
from rtp_jax.router.simulated_worker import SimulatedSequence, SimulatedWorker
from rtp_jax.router.simulator import (
    Fault,
    SimulatedRequest,
    Simulation,
    percentile,
    revived,
)

HASHING = PageHashing(b"", "simulated", "", 16)
FIT = (0.02, 5e-4, 1e-3, 1e-6, 0.0)


def worker(number: int, role: Role = Role.BOTH, *, num_pages: int = 60) -> SimulatedWorker:
    facts = WorkerFacts(
        id=f"w{number}",
        address="",
        epoch="1",
        role=role,
        hashing=HASHING,
        num_pages=num_pages,
        max_num_seqs=6,
        max_num_batched_tokens=128,
        max_model_len=4096,
        kv_address="here",
    )
    return SimulatedWorker(facts, FIT, seed=number)


def requests(number: int, *, every_s: float, seed: int = 0) -> list[SimulatedRequest]:
    """Draw requests of a few conversations, each longer than the one before it."""
    rng, turns, drawn = random.Random(seed), [0] * 12, []
    for i in range(number):
        conversation = rng.randrange(12)
        turns[conversation] = turns[conversation] % 12 + 1
        num_tokens = 20 * turns[conversation] + rng.randrange(1, 16)
        keys = [
            (conversation << 16 | page).to_bytes(16, "little") for page in range(num_tokens // 16)
        ]
        output = rng.randrange(1, 20)
        at_s = rng.random() * number * every_s
        drawn.append(SimulatedRequest(f"r{i}", at_s, tuple(keys), num_tokens, output, 64))
    return drawn


def check(simulation: Simulation, workers: list[SimulatedWorker]) -> None:
    """Every request has its tokens; no page and no reservation is left."""
    for served in simulation.served:
        assert served.refusal == ""
        assert served.num_tokens == served.request.num_output_tokens
        assert served.ended_s >= served.request.at_s + served.ttft_s > served.request.at_s
        # One that goes on elsewhere may find all of its prompt, since its output is behind it.
        assert served.reused_tokens < served.request.num_tokens + (served.num_attempts > 1)
    router = simulation.router
    assert (router.num_waiting, router.num_in_flight, router._keys) == (0, 0, {})
    for view in router.workers.values():
        assert view.flights == {}
        assert view.outstanding_tokens == 0
        assert view.prefill_tokens(1e9) == 0
    for one in workers:
        assert (one.running, list(one.waiting), one.pages.num_users) == ([], [], {})
        assert one.pages.num_available == one.facts.num_pages


@pytest.mark.parametrize("policy", ["round_robin", "least_tokens", "affinity", "ttft"])
def test_all_requests_are_served_and_nothing_is_left(policy):
    workers = [worker(i) for i in range(4)]
    router = Router(RouterSettings(policy=policy))
    simulation = Simulation(router, workers, requests(300, every_s=0.03)).run()
    check(simulation, workers)
    for one in workers:  # what the router knows is what they hold
        simulation.router.events(one.facts.id, one.snapshot())
        assert router.index.counts(one.facts.id) == [len(one.pages.remembered), 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_requests_survive_workers_that_die_stop_or_become_slow(seed):
    rng = random.Random(seed)
    kinds = ("kill", "stop", "slow")
    faults = [
        Fault(rng.random() * 9, kinds[i % 3], f"w{rng.randrange(4)}", rng.uniform(0.2, 4))
        for i in range(12)
    ]
    alive = {f"w{i}": worker(i) for i in range(4)}

    def revive(dead: SimulatedWorker) -> SimulatedWorker:
        alive[dead.facts.id] = revived(dead)
        return alive[dead.facts.id]

    simulation = Simulation(
        Router(),
        list(alive.values()),
        requests(300, every_s=0.03, seed=seed),
        faults=faults,
        revive=revive,
    ).run()
    assert max(served.num_attempts for served in simulation.served) > 1
    check(simulation, [])


def test_prefill_workers_help_and_may_die():
    workers = [worker(0, Role.DECODE), worker(1, Role.DECODE)]
    workers += [worker(2, Role.PREFILL), worker(3, Role.PREFILL)]
    faults = [Fault(3.0, "kill", "w2", 1.0), Fault(5.0, "kill", "w3", 1.0)]
    drawn = requests(200, every_s=0.04)
    router = Router(RouterSettings(policy="round_robin"))
    simulation = Simulation(router, workers, drawn, faults=faults, revive=revived).run()
    check(simulation, [])
    assert {served.worker for served in simulation.served} == {"w0", "w1"}
    assert workers[2].num_computed_tokens > 0


def test_the_same_simulation_gives_the_same_times():
    def times() -> list[float]:
        workers = [worker(i) for i in range(3)]
        simulation = Simulation(Router(), workers, requests(100, every_s=0.03)).run()
        return [served.ttft_s for served in simulation.served]

    assert times() == times()


def test_one_request_alone_takes_the_time_of_its_steps():
    alone = worker(0)
    request = SimulatedRequest("r", 1.0, (), 300, 5, 8)
    (served,) = Simulation(Router(), [alone], [request]).run().served
    chunks = [(128, 128), (128, 256), (44, 300)]
    prefill_s = sum(step_seconds(FIT, prefill=p, decoding=0, context=c) for p, c in chunks)
    decode_s = sum(step_seconds(FIT, prefill=0, decoding=1, context=301 + i) for i in range(4))
    # Steps vary by 5 %; the network takes 1 ms each way.
    assert served.ttft_s == pytest.approx(prefill_s + 0.002, rel=0.1)
    assert served.ended_s - 1.0 - served.ttft_s == pytest.approx(decode_s, rel=0.1)


def test_predictions_come_true_once_steps_were_seen():
    workers = [worker(i, num_pages=2000) for i in range(2)]
    simulation = Simulation(Router(), workers, requests(400, every_s=0.06)).run()
    ratios = [
        (served.request.at_s + served.ttft_s - served.placed_s) / served.predicted_ttft_s
        for served in simulation.served
        if served.request.at_s > 8
    ]
    assert 0.8 < percentile(ratios, 0.5) < 1.25
    assert simulation.router.ttft_error < 1.0


def test_a_full_worker_preempts_and_still_serves_all():
    small = worker(0, num_pages=14)
    for i in range(6):
        small.submit(SimulatedSequence(f"r{i}", (), 20, 40))
    tokens = []
    while small.begin_step() is not None:
        tokens += small.end_step().tokens
        held = sum(s.num_private + len(s.shared) for s in small.running)
        assert small.pages.num_free + len(small.pages.remembered) + held == 14
    assert sorted(tokens) == sorted(f"r{i}" for i in range(6) for _ in range(40))
    assert small.pages.num_available == 14


def test_pages_that_follow_in_a_conversation_are_reused():
    one = worker(0)
    keys = tuple(i.to_bytes(16, "little") for i in range(10))
    first = SimulatedRequest("r0", 0.0, keys[:5], 90, 2, 8)
    second = SimulatedRequest("r1", 5.0, keys, 165, 2, 8)
    served = Simulation(Router(), [one], [first, second]).run().served
    assert [s.reused_tokens for s in served] == [0, 80]


def test_a_hundred_workers_share_the_work():
    workers = [worker(i) for i in range(100)]
    simulation = Simulation(Router(), workers, requests(1000, every_s=0.002)).run()
    check(simulation, workers)
    assert sum(one.num_computed_tokens > 0 for one in workers) > 50


@pytest.mark.parametrize(("share", "value"), [(0.5, 51), (0.95, 96), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_one_of_the_values(share, value):
    assert percentile(list(range(100, 0, -1)), share) == value
