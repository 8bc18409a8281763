"""The steps that routers are told of: the latest few, as numbers, each once."""

import sys

from rtp_jax.engine.loop import StepTimes
from rtp_jax.engine.watched import StepSample, StepSamples
from rtp_jax.request import Request, Sequence, StepPlan, StepRow
from rtp_jax.sampling_params import SamplingParams


def step(number: int, sequence: Sequence) -> StepTimes:
    """A step that prefills a token of one sequence."""
    row = StepRow(sequence, 0, number, 1, [5], [1], 0, 0, False)
    times = StepTimes(StepPlan(number, (row,)), (8, 8), 0.0, 0.0, 0.0)
    times.device_s = number / 1000
    return times


def sequence() -> Sequence:
    params = SamplingParams(max_tokens=1)
    request = Request(id="r", prompt_token_ids=tuple(range(100)), params=params)
    return Sequence(request, 0, 0)


def test_each_step_is_told_once_and_the_oldest_are_forgotten():
    samples, one = StepSamples(3), sequence()
    for number in range(2):
        samples.add(step(number, one))
    told, upto = samples.since(0)
    assert told == [StepSample(1, 0, 1, 0.0), StepSample(1, 0, 2, 0.001)]
    assert samples.since(upto) == ([], 2)
    for number in range(2, 9):
        samples.add(step(number, one))
    told, upto = samples.since(upto)
    assert [each.seconds for each in told] == [0.006, 0.007, 0.008]
    assert (upto, samples.num_steps) == (9, 9)
    assert samples.since(8)[0] == told[-1:]


def test_nothing_of_a_plan_is_kept():
    samples, one = StepSamples(), sequence()
    before = sys.getrefcount(one)
    for number in range(10):
        samples.add(step(number, one))
    assert sys.getrefcount(one) == before
    assert samples.num_steps == 10
