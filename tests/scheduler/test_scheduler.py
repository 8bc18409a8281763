"""The scheduler, driven as the engine drives it: one step ahead of what the host knows."""

import itertools

import pytest

from rtp_jax.errors import ResourceExhausted
from rtp_jax.request import FinishReason
from tests.scheduler.simulated import Simulation, alone, oracle, prompt_logprobs, request


@pytest.mark.smoke
@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_batching_and_chunks_never_change_a_token(ahead, prefix_caching):
    simulation = Simulation(ahead=ahead, prefix_caching=prefix_caching, max_prefill_chunk=5)
    requests = [request(str(i), 3 + 5 * i, seed=i, max_tokens=6) for i in range(7)]
    for one in requests:
        simulation.add(one)
    simulation.run()
    for one in requests:
        assert simulation.token_ids(one.id) == alone(one)[0]
        assert simulation.last(one.id).finish_reason is FinishReason.LENGTH
    assert simulation.scheduler.counters.mixed_steps > 0
    assert (simulation.scheduler.counters.hit_tokens > 0) == prefix_caching


def test_decode_rows_come_first_and_long_prompts_come_in_chunks():
    simulation = Simulation(max_num_batched_tokens=8)
    simulation.add(request("short", 4, max_tokens=20))
    simulation.step()
    simulation.add(request("long", list(range(20))))
    simulation.step()
    rows = simulation.plans[-1].rows
    assert [(row.sequence.request.id, row.start, row.count) for row in rows] == [
        ("short", 4, 1),
        ("long", 0, 7),
    ]
    assert [row.num_logit_rows for row in rows] == [1, 0]
    assert rows[0].token_ids is None
    simulation.run()


def test_preempted_sequences_continue_with_the_same_tokens():
    simulation = Simulation(num_pages=14, max_num_batched_tokens=64)
    requests = [request(str(i), [i] * 8, seed=i, max_tokens=30) for i in range(4)]
    for one in requests:
        simulation.add(one)
    simulation.run()
    assert simulation.scheduler.counters.preemptions > 0
    assert simulation.scheduler.counters.evictions > 0
    for one in requests:
        assert simulation.token_ids(one.id) == alone(one)[0]
    assert simulation.last("0").num_preemptions == 0
    assert simulation.last("3").num_preemptions > 0


def test_bad_words_of_several_tokens_wait_for_the_host():
    free = alone(request("r", 10, max_tokens=12))[0]
    one = request("r", 10, max_tokens=12, bad_word_ids=((free[2], free[3]),))
    simulation = Simulation()
    simulation.add(one)
    simulation.add(request("other", 6, max_tokens=12))
    simulation.run()
    ids = simulation.token_ids("r")
    assert ids[:3] == free[:3]
    assert ids == alone(one)[0]
    assert (free[2], free[3]) not in itertools.pairwise(ids)
    assert all(
        row.token_ids is not None
        for plan in simulation.plans
        for row in plan.rows
        if row.sequence.request.id == "r"
    )


def test_prompt_logprobs_are_complete_in_few_logit_rows():
    one = request("r", 23, prompt_logprobs=2, logprobs=1, max_tokens=3)
    simulation = Simulation(num_pages=60, max_num_seqs=4)
    simulation.add(request("before", 23))
    simulation.run()
    simulation.add(one)
    simulation.add(request("beside", 12, max_tokens=12))
    simulation.run()
    assert simulation.last("r").num_cached_tokens == 0
    reports = prompt_logprobs(simulation, "r")
    assert reports == alone(one)[1]
    assert [token_id for token_id, _ in reports or []] == list(one.prompt_token_ids[1:])
    assert simulation.token_ids("r") == alone(one)[0]
    first = next(out for out in simulation.outputs["r", 0] if out.prompt_logprobs)
    assert [entry[0] for entry in first.prompt_logprobs[0].others] == [0, 1]
    assert len(simulation.last("r").logprobs[0].others) == 1


def test_logprobs_of_chosen_tokens():
    simulation = Simulation()
    simulation.add(request("r", 4, max_tokens=1, logprob_token_ids=[9, 5]))
    simulation.run()
    (entry,) = simulation.last("r").logprobs
    assert entry.others == ((9, 0.0, None), (5, -1.0, None))
    assert entry.token_id == simulation.token_ids("r")[0]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    simulation = Simulation(max_num_seqs=1, max_waiting=2)
    for i in range(3):
        simulation.add(request(str(i)))
    with pytest.raises(ResourceExhausted, match=r"RTPJ-2201 QUEUE_FULL.*max_waiting=2") as caught:
        simulation.add(request("more"))
    assert caught.value.retry_after_s > 0
    simulation.run()
    simulation.add(request("more"))
    simulation.run()


@pytest.mark.capability("priorities")
def test_lower_priorities_go_first_and_waiting_improves_them():
    simulation = Simulation(max_num_seqs=1, ageing_s=1.0)
    for name, priority in (("low", 5), ("high", 0), ("middle", 2)):
        simulation.add(request(name, 4, priority=priority, max_tokens=1))
    simulation.now_s = 4.0
    simulation.add(request("late", 4, priority=0, max_tokens=1))  # 4 s later: behind the middle
    simulation.run()
    assert list(simulation.outputs) == [("high", 0), ("middle", 0), ("late", 0), ("low", 0)]


def test_a_long_prompt_is_not_overtaken_for_want_of_pages():
    simulation = Simulation(num_pages=16, max_num_batched_tokens=64)
    simulation.add(request("running", [1] * 24, max_tokens=10))
    simulation.step()
    simulation.add(request("long", [2] * 40, max_tokens=2))
    simulation.add(request("short", [3] * 4, max_tokens=2))
    simulation.run()
    assert list(simulation.outputs) == [("running", 0), ("long", 0), ("short", 0)]


def test_seeds_of_completions():
    simulation = Simulation()
    simulation.add(request("r", n=3, seed=11))
    seeds = [tracked.sequence.seed for tracked in simulation.scheduler._roster.waiting.copied()]
    assert seeds[0] == 11
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_equal_requests_make_equal_plans():
    def plans() -> list:
        simulation = Simulation(num_pages=12, max_num_batched_tokens=9)
        for i in range(5):
            simulation.add(request(str(i), 6 + 2 * i, seed=i, priority=i % 2))
        simulation.run()
        return [
            (row.sequence.request.id, row.slot, row.start, row.count, row.pages)
            for plan in simulation.plans
            for row in plan.rows
        ]

    assert plans() == plans()


def test_the_first_advances_even_if_decoding_takes_all_tokens():
    simulation = Simulation(max_num_batched_tokens=2, max_num_seqs=4, num_pages=60)
    # Lockstep sequences leave tokens to others in every other step only.
    simulation.add(request("0", [1], priority=1, max_tokens=20))
    simulation.add(request("1", [2], priority=1, max_tokens=20, bad_word_ids=((1, 2),)))
    while simulation.scheduler.num_running < 2:
        simulation.step()
    simulation.add(request("first", 6, max_tokens=2))
    while simulation.scheduler.num_running < 3:
        simulation.step()
    for _ in range(5):
        simulation.step()
        rows = simulation.plans[-1].rows
        assert "first" in [row.sequence.request.id for row in rows]
    simulation.run()


def test_a_token_in_flight_survives_the_preemption_of_its_sequence():
    simulation = Simulation(num_pages=7, max_num_seqs=2)
    for name in ("first", "second"):
        simulation.add(request(name, [len(name)] * 8, max_tokens=12))
    while simulation.scheduler.counters.preemptions == 0:
        simulation.launch()
        if len(simulation.in_flight) > 1 and simulation.scheduler.counters.preemptions == 0:
            simulation.commit()
    (waiting,) = simulation.scheduler._roster.waiting.copied()
    sequence, before = waiting.sequence, len(waiting.sequence.output_ids)
    in_flight = sequence.num_in_flight
    assert in_flight > 0
    while waiting.steps_in_flight:
        assert sequence not in [row.sequence for row in simulation.plans[-1].rows]
        simulation.commit()
    assert sequence.num_in_flight == 0
    assert len(sequence.output_ids) == before + in_flight
    simulation.run()
    for name in ("first", "second"):
        assert simulation.token_ids(name) == oracle(request(name, [len(name)] * 8, max_tokens=12))


def test_a_head_that_does_not_fit_is_not_looked_up_again_and_again(monkeypatch):
    simulation = Simulation(num_pages=16, max_num_batched_tokens=64)
    simulation.add(request("running", [1] * 24, max_tokens=20))
    simulation.step()
    ledger, lookups = simulation.scheduler._ledger, []
    match = ledger.match
    monkeypatch.setattr(ledger, "match", lambda tracked: lookups.append(tracked) or match(tracked))
    simulation.add(request("long", [2] * 40, max_tokens=2))
    simulation.run()
    assert len(lookups) <= 3
    assert len(simulation.token_ids("long")) == 2
