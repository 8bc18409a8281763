"""Who computes a prompt, and who finds it computed?"""

from tests.scheduler.simulated import Simulation, alone, request


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


def test_a_reset_prefix_cache_holds_nothing():
    simulation = Simulation()
    simulation.add(request("a", 16))
    simulation.run()
    simulation.scheduler.reset_prefix_cache()
    assert simulation.scheduler.loads()["num_free_pages"] == 29
    simulation.add(request("b", 16))
    simulation.run()
    assert simulation.last("b").num_cached_tokens == 0


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
