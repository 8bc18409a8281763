"""The scheduler, driven as the engine drives it: one step ahead of what the host knows."""

import itertools

import pytest

from rtp_jax.errors import Internal, ResourceExhausted
from rtp_jax.request import FinishReason, Phase
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


def test_the_completions_of_a_request_share_its_prompt():
    simulation = Simulation(num_pages=60, max_num_batched_tokens=10)
    one = request("r", 21, n=4)
    simulation.add(one)
    simulation.run()
    cached = [simulation.last("r", index).num_cached_tokens for index in range(4)]
    assert cached == [0, 20, 20, 20]
    outputs = [simulation.token_ids("r", index) for index in range(4)]
    assert outputs == [alone(one, index)[0] for index in range(4)]
    assert len({tuple(ids) for ids in outputs}) == 4


def test_equal_prompts_that_arrive_together_are_computed_once():
    simulation = Simulation(num_pages=60)
    for i in range(3):
        simulation.add(request(str(i), 17, seed=i))
    simulation.run()
    assert [simulation.last(str(i)).num_cached_tokens for i in range(3)] == [0, 16, 16]


def test_salts_keep_prompts_apart():
    simulation = Simulation(num_pages=60)
    for salt in ("", "a", "a", "b"):
        simulation.add(request(f"{len(simulation.expected)}", 17, cache_salt=salt))
    simulation.run()
    cached = [simulation.last(str(i)).num_cached_tokens for i in range(4)]
    assert cached == [0, 0, 16, 0]


def test_the_whole_prompt_is_never_matched():
    simulation = Simulation()
    for name in "ab":
        simulation.add(request(name, 16))
        simulation.run()
    assert simulation.last("b").num_cached_tokens == 12
    assert [row.count for plan in simulation.plans for row in plan.rows if row.admits] == [16, 4]


def test_output_of_one_turn_is_found_by_the_next():
    simulation = Simulation()
    first = request("first", 10, max_tokens=9)
    simulation.add(first)
    simulation.run()
    answer = simulation.token_ids("first")
    simulation.add(request("second", [*first.prompt_token_ids, *answer, 1, 2]))
    simulation.run()
    # 19 tokens; the KV of the last one was never computed, so 18 are, in 4 full pages.
    assert simulation.last("second").num_cached_tokens == 16


def test_a_stop_token_ends_a_sequence_and_its_surplus_is_dropped():
    one = request("r", 10, max_tokens=20)
    ids = alone(one)[0]
    stop = next(token for at, token in enumerate(ids) if token not in ids[:at] and at >= 4)
    simulation = Simulation()
    simulation.add(request("r", 10, max_tokens=20, stop_token_ids=[stop]))
    simulation.run()
    assert simulation.token_ids("r") == ids[: ids.index(stop) + 1]
    assert simulation.last("r").finish_reason is FinishReason.STOP
    assert simulation.last("r").stop_reason == stop
    assert simulation.scheduler.counters.surplus_tokens == 1


def test_an_eos_is_not_a_stop_reason_and_min_tokens_masks_it():
    ids = alone(request("r", 10, max_tokens=20))[0]
    simulation = Simulation()
    simulation.add(request("early", 10, max_tokens=20, stops=frozenset({ids[0]})))
    simulation.add(request("late", 10, max_tokens=20, stops=frozenset({ids[0]}), min_tokens=5))
    simulation.run()
    assert simulation.token_ids("early") == ids[:1]
    assert simulation.last("early").stop_reason is None
    assert len(simulation.token_ids("late")) > 5
    assert ids[0] not in simulation.token_ids("late")[:5]


def test_the_context_ends_a_sequence():
    simulation = Simulation(max_model_len=16)
    simulation.add(request("r", 10, max_tokens=6))
    simulation.run()
    assert len(simulation.token_ids("r")) == 6
    assert simulation.last("r").finish_reason is FinishReason.LENGTH
    assert simulation.scheduler.counters.surplus_tokens == 0


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


def test_abort_ends_all_completions_and_its_slots_are_reused():
    simulation = Simulation(max_num_seqs=2)
    simulation.add(request("gone", 10, n=3, max_tokens=30))
    simulation.add(request("next", 10, max_tokens=5))
    for _ in range(4):
        simulation.step()
    outputs = simulation.scheduler.abort("gone", simulation.now_s)
    assert [(out.index, out.finish_reason) for out in outputs] == [
        (0, FinishReason.ABORT),
        (1, FinishReason.ABORT),
        (2, FinishReason.ABORT),
    ]
    assert simulation.scheduler.abort("gone", simulation.now_s) == []
    simulation.run()
    assert simulation.token_ids("next") == alone(request("next", 10, max_tokens=5))[0]


def test_finish_drops_the_surplus_of_a_stop_string():
    simulation = Simulation()
    simulation.add(request("r", 10, max_tokens=30))
    for _ in range(6):
        simulation.step()
    sequence = simulation.plans[-1].rows[0].sequence
    simulation.scheduler.finish("r", 0, 2, "END")
    assert len(sequence.output_ids) == 2
    assert sequence.phase is Phase.FINISHED
    simulation.scheduler.finish("r", 0, 2, "END")
    before = len(simulation.outputs["r", 0])
    simulation.run()
    assert len(simulation.outputs["r", 0]) == before


def test_deadlines_hold_in_the_queue_and_while_running():
    simulation = Simulation(max_num_seqs=1)
    simulation.add(request("running", 10, max_tokens=50, deadline_s=0.055))
    simulation.add(request("waiting", 10, max_tokens=50, deadline_s=0.02))
    simulation.add(request("fine", 10, max_tokens=5, deadline_s=100.0))
    simulation.run()
    for name in ("running", "waiting"):
        assert simulation.last(name).finish_reason is FinishReason.ABORT
        assert simulation.last(name).error.id == "RTPJ-4001"
    assert "while it waited" in str(simulation.last("waiting").error)
    assert 0 < len(simulation.token_ids("running")) < 50
    assert len(simulation.token_ids("fine")) == 5


def test_a_request_that_waits_too_long_is_given_up():
    simulation = Simulation(max_num_seqs=1, max_queue_s=0.05)
    simulation.add(request("first", 10, max_tokens=20))
    simulation.add(request("second", 10, max_tokens=5))
    simulation.run()
    assert len(simulation.token_ids("first")) == 20
    assert simulation.last("second").error.name == "QUEUE_TIMEOUT"


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


def test_nan_ends_one_sequence_and_its_pages_are_forgotten():
    simulation = Simulation()
    simulation.runner.poisoned = {"bad"}
    simulation.add(request("bad", 14))
    simulation.add(request("good", [9] * 9))
    simulation.run()
    assert simulation.last("bad").finish_reason is FinishReason.ERROR
    assert simulation.last("bad").error.id == "RTPJ-4103"
    assert "request bad" in str(simulation.last("bad").error)
    assert len(simulation.token_ids("good")) == 8
    simulation.runner.poisoned = set()
    simulation.add(request("again", 14))
    simulation.run()
    assert simulation.last("again").num_cached_tokens == 0


def test_after_a_failed_step_sequences_run_again_one_by_one():
    simulation = Simulation()
    requests = [request(str(i), 6 + i, seed=i, max_tokens=10) for i in range(3)]
    for one in requests:
        simulation.add(one)
    for _ in range(5):
        simulation.step()
    suspects = [row.sequence for row in simulation.plans[-1].rows]
    simulation.scheduler.requeue_running()
    simulation.runner.reset()
    stale = simulation.in_flight.popleft()
    assert simulation.scheduler.commit(*stale, simulation.now_s) == []
    simulation.check()
    for sequence in suspects[:2]:
        simulation.step(only=sequence)
        assert [row.sequence for row in simulation.plans[-1].rows] == [sequence]
    error = Internal("RTPJ-9999 X: y")
    (output,) = simulation.scheduler.fail(suspects[2], error, simulation.now_s)
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, error)
    assert simulation.scheduler.fail(suspects[2], error, simulation.now_s) == []
    simulation.run()
    for one in requests[:2]:
        assert simulation.token_ids(one.id) == alone(one)[0]


def test_running_alone_takes_pages_from_others():
    simulation = Simulation(num_pages=8, max_num_seqs=2)
    simulation.add(request("first", [1] * 8, max_tokens=19))
    simulation.add(request("second", [2] * 20, max_tokens=8))
    for _ in range(3):
        simulation.step()
    (waiting,) = simulation.scheduler._roster.waiting.copied()
    while simulation.in_flight:
        simulation.commit()
    simulation.step(only=waiting.sequence)
    assert simulation.scheduler.num_running == 1
    simulation.run()
    assert simulation.last("first").num_preemptions == 1


def test_a_reset_prefix_cache_holds_nothing():
    simulation = Simulation()
    simulation.add(request("a", 16))
    simulation.run()
    simulation.scheduler.reset_prefix_cache()
    assert simulation.scheduler.loads()["num_free_pages"] == 29
    simulation.add(request("b", 16))
    simulation.run()
    assert simulation.last("b").num_cached_tokens == 0


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


def test_abort_all_leaves_nothing():
    simulation = Simulation()
    simulation.add(request("a", 10, n=2))
    simulation.add(request("b", 10))
    simulation.step()
    assert len(simulation.scheduler.abort_all(0.0)) == 3
    simulation.run()


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


def test_many_completions_of_one_request_do_not_hold_up_others():
    simulation = Simulation(
        num_pages=200, max_num_seqs=4, max_num_batched_tokens=8, max_prefill_chunk=4
    )
    simulation.add(request("many", 30, n=100, max_tokens=2))
    simulation.add(request("one", [3] * 6, max_tokens=2))
    for _ in range(4):
        simulation.step()
    assert ("one", 0) in simulation.outputs  # while the others wait for the prompt they share
    simulation.run()
    assert all(len(simulation.token_ids("many", index)) == 2 for index in range(100))
