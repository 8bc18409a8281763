"""Anything may happen in any order: no page is lost, read wrongly or owned twice, no token changes.

The simulated device judges each read, `Simulation.check` the books after each step, and in the end
every output is compared with what the model alone would have said.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rtp_jax.cache.tiers.host import HostTier
from rtp_jax.cache.tiers.tier import Store
from rtp_jax.errors import Internal, ResourceExhausted
from rtp_jax.request import FinishReason, Request
from tests.cache.tiers.lossy import LossyStore
from tests.scheduler.simulated import (
    VOCAB,
    Simulation,
    alone,
    oracle,
    prompt_logprobs,
    prompt_oracle,
    request,
)

NUM_WALKS, TURNS = 25, 500
MAX_PROMPT, MAX_OUTPUT = 40, 20
TEXTS = [[(i * i * 3 + i * text) % VOCAB for i in range(MAX_PROMPT)] for text in range(3)]


def any_request(name: str, choose: random.Random) -> Request:
    """Make a request whose prompt begins like many others', with some options."""
    shared, own = choose.randint(0, 24), choose.randint(1, 12)
    prompt = choose.choice(TEXTS)[:shared] + [choose.randrange(VOCAB) for _ in range(own)]
    max_tokens = choose.randint(1, MAX_OUTPUT)
    options: dict = {"n": choose.choice([1, 1, 1, 3]), "cache_salt": choose.choice(["", "", "s"])}
    if choose.random() < 0.2:
        options["prompt_logprobs"] = 1
    if choose.random() < 0.2:
        options["bad_word_ids"] = tuple((i, j) for i in range(0, VOCAB, 2) for j in range(0, 40, 3))
    if choose.random() < 0.3:
        options["stops"] = frozenset(choose.sample(range(VOCAB), 3))
        options["min_tokens"] = choose.randint(0, max_tokens)
    return request(
        name,
        prompt,
        max_tokens=max_tokens,
        priority=choose.randint(0, 2),
        seed=choose.randrange(2**32),
        **options,
    )


def any_stores(choose: random.Random) -> list[Store]:
    """Have no tiers, host memory, or two of which the second one loses and breaks pages."""
    host = HostTier(choose.choice([2_000, 10_000, 100_000]))
    lossy = LossyStore(HostTier(50_000), seed=choose.randrange(2**32))
    return choose.choice([[], [host], [host, lossy], [lossy]])


@dataclass
class History:
    """What was asked of a simulation, and what was broken off."""

    simulation: Simulation
    requests: dict[str, Request] = field(default_factory=dict)
    stopped: dict[tuple[str, int], int] = field(default_factory=dict)  # by a stop string

    @classmethod
    def begin(cls, choose: random.Random) -> "History":
        page_size = choose.choice([1, 4, 8])
        longest = MAX_PROMPT + MAX_OUTPUT
        max_num_seqs = choose.randint(1, 6)
        stores, write_hits = any_stores(choose), choose.choice([None, None, 0, 1])
        simulation = Simulation(
            page_size=page_size,
            num_pages=1 + -(-longest // page_size) + choose.randint(0, 60 // page_size),
            max_model_len=longest,
            prefix_caching=choose.random() < 0.8,
            ahead=choose.choice([0, 1, 1, 1, 2]),
            max_num_seqs=max_num_seqs,
            max_logit_rows=choose.choice([max_num_seqs, max_num_seqs + 5]),
            max_num_batched_tokens=choose.randint(2, 24),
            max_prefill_chunk=choose.choice([None, 1, 7]),
            ageing_s=choose.choice([0.0, 0.1]),
            stores=stores,
            write_hits=write_hits,
            staging_pages=choose.choice([1, 4, 50]),
        )
        return cls(simulation)

    def add(self, choose: random.Random) -> None:
        one = any_request(f"r{len(self.requests)}", choose)
        try:
            self.simulation.add(one)
        except ResourceExhausted:
            return
        self.requests[one.id] = one

    def live(self) -> list[str]:
        return list(self.simulation.scheduler._roster.groups)

    def abort(self, request_id: str) -> None:
        simulation = self.simulation
        simulation.deliver(simulation.scheduler.abort(request_id))

    def stop(self, request_id: str, index: int, keep: int) -> None:
        """Behave as delivery does when it finds a stop string."""
        keep = min(keep, len(self.simulation.token_ids(request_id, index)))
        before = self.simulation.outputs.get((request_id, index))
        if before and before[-1].finish_reason is None and keep:
            self.simulation.scheduler.finish(request_id, index, keep)
            self.stopped[request_id, index] = keep

    def break_down(self) -> None:
        """Lose the device, with the steps in flight."""
        self.simulation.in_flight.clear()
        self.simulation.scheduler.requeue_running()
        self.simulation.runner.reset()

    def fail_one(self, request_id: str) -> None:
        simulation = self.simulation
        sequence = simulation.scheduler._roster.groups[request_id].members[0].sequence
        error = Internal("RTPJ-4102 STEP_FAILED: again")
        simulation.deliver(simulation.scheduler.fail(sequence, error))

    def end(self) -> None:
        """Finish what is left, then compare everything with the model."""
        self.simulation.run()
        self.simulation.close()
        for one in self.requests.values():
            for index in range(one.params.n):
                self.check_outputs(one, index)

    def check_outputs(self, one: Request, index: int) -> None:
        key = one.id, index
        ids, expected = self.simulation.token_ids(*key), oracle(one, index)
        if key in self.stopped:
            assert ids == expected[: len(ids)]
            return
        reason = self.simulation.last(*key).finish_reason
        assert reason is not None, f"{key} was forgotten"
        if reason in (FinishReason.ABORT, FinishReason.ERROR):
            assert ids == expected[: len(ids)]
            return
        assert ids == expected
        stopped = ids[-1] in one.stop_token_ids and len(ids) >= one.params.min_tokens
        assert reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        if one.params.prompt_logprobs is not None:
            assert (prompt_logprobs(self.simulation, *key) or []) == prompt_oracle(one)


def walk(seed: int, turns: int) -> History:
    """Take random turns, mostly those of an engine under load."""
    choose = random.Random(seed)
    history = History.begin(choose)
    simulation = history.simulation
    for _ in range(turns):
        if choose.random() < 0.15 and simulation.scheduler.num_waiting < 12:
            history.add(choose)
        if choose.random() < 0.02 and (live := history.live()):
            history.abort(choose.choice(live))
        if choose.random() < 0.02 and (live := history.live()):
            history.stop(choose.choice(live), 0, choose.randint(1, 5))
        if choose.random() < 0.003:
            history.break_down()
        if choose.random() < 0.003:
            simulation.reset_prefix_cache()
        simulation.step()
        simulation.check()
    history.end()
    return history


@pytest.mark.parametrize("seed", range(NUM_WALKS))
def test_a_random_walk(seed):
    walk(seed, TURNS)


def test_walks_meet_what_they_are_for():
    """The walks above are worth nothing if they never preempt, evict, hit, or mix steps."""
    counters = [walk(seed, 200).simulation.scheduler.counters for seed in range(6)]
    assert sum(each.steps for each in counters) > 0.8 * 6 * 200
    for name in ("preemptions", "evictions", "hit_tokens", "mixed_steps", "surplus_tokens"):
        assert sum(vars_of(each)[name] for each in counters) > 0, name


def vars_of(counters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in counters.__slots__}


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_is_what_a_request_gets_alone(seed):
    one = any_request("r", random.Random(seed))
    for index in range(one.params.n):
        ids, reports = alone(one, index)
        assert ids == oracle(one, index)
        assert reports is None or reports == prompt_oracle(one)


class AnyHistory(RuleBasedStateMachine):
    """The same moves, chosen by hypothesis, which makes a failure short."""

    @initialize(choose=st.randoms(use_true_random=False))
    def begin(self, choose):
        self.history = History.begin(choose)

    @rule(choose=st.randoms(use_true_random=False))
    def add(self, choose):
        self.history.add(choose)

    @rule(turns=st.integers(1, 8))
    def step(self, turns):
        for _ in range(turns):
            self.history.simulation.step()
            self.history.simulation.check()

    @precondition(lambda self: self.history.live())
    @rule(data=st.data())
    def abort(self, data):
        self.history.abort(data.draw(st.sampled_from(self.history.live())))

    @precondition(lambda self: self.history.live())
    @rule(data=st.data(), keep=st.integers(1, 5))
    def stop(self, data, keep):
        self.history.stop(data.draw(st.sampled_from(self.history.live())), 0, keep)

    @precondition(lambda self: self.history.live())
    @rule(data=st.data())
    def fail(self, data):
        self.history.fail_one(data.draw(st.sampled_from(self.history.live())))

    @rule()
    def break_down(self):
        self.history.break_down()

    @rule()
    def reset(self):
        self.history.simulation.reset_prefix_cache()

    @rule(seconds=st.floats(0.0, 1.0))
    def wait(self, seconds):
        self.history.simulation.now_s += seconds

    @invariant()
    def books_add_up(self):
        if "history" in self.__dict__:
            self.history.simulation.check()

    def teardown(self):
        if "history" in self.__dict__:
            self.history.end()


def test_any_history():
    run_state_machine_as_test(
        AnyHistory,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
