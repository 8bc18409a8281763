"""Every way in which a sequence ends, and what is left of it: nothing."""

from rtp_jax.errors import Internal
from rtp_jax.request import FinishReason, Phase
from tests.scheduler.simulated import Simulation, alone, request


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


def test_abort_ends_all_completions_and_its_slots_are_reused():
    simulation = Simulation(max_num_seqs=2)
    simulation.add(request("gone", 10, n=3, max_tokens=30))
    simulation.add(request("next", 10, max_tokens=5))
    for _ in range(4):
        simulation.step()
    outputs = simulation.scheduler.abort("gone")
    assert [(out.index, out.finish_reason) for out in outputs] == [
        (0, FinishReason.ABORT),
        (1, FinishReason.ABORT),
        (2, FinishReason.ABORT),
    ]
    assert simulation.scheduler.abort("gone") == []
    simulation.run()
    assert simulation.token_ids("next") == alone(request("next", 10, max_tokens=5))[0]


def test_finish_drops_the_surplus_of_a_stop_string():
    simulation = Simulation()
    simulation.add(request("r", 10, max_tokens=30))
    for _ in range(6):
        simulation.step()
    sequence = simulation.plans[-1].rows[0].sequence
    simulation.scheduler.finish("r", 0, 2)
    assert len(sequence.output_ids) == 2
    assert sequence.phase is Phase.FINISHED
    simulation.scheduler.finish("r", 0, 2)
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
    (output,) = simulation.scheduler.fail(suspects[2], error)
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, error)
    assert simulation.scheduler.fail(suspects[2], error) == []
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


def test_abort_all_leaves_nothing():
    simulation = Simulation()
    simulation.add(request("a", 10, n=2))
    simulation.add(request("b", 10))
    simulation.step()
    assert len(simulation.scheduler.abort_all()) == 3
    simulation.run()
