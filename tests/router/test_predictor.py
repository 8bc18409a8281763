"""The fit of step times: it finds the coefficients that made the times."""

import random

import pytest

from rtp_jax.router.facts import StepSample
from rtp_jax.router.predictor import GUESS, StepFit, pace, step_seconds

TRUE = (0.045, 4.5e-4, 3e-4, 9e-6, 2e-8)


def steps(true, number: int, *, seed: int, noise: float = 0.0) -> list[StepSample]:
    """Draw steps of a worker that serves: prompts in chunks, few or many sequences that decode."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(number):
        prefill = rng.choice([0, 0, 0, rng.randrange(1, 512)])
        decoding = rng.randrange(0 if prefill else 1, 17)
        context = prefill + sum(rng.randrange(50, 2000) for _ in range(decoding))
        seconds = step_seconds(true, prefill=prefill, decoding=decoding, context=context)
        drawn.append(StepSample(prefill, decoding, context, seconds * rng.gauss(1, noise)))
    return drawn


def errors(fit: StepFit, true, seed: int) -> list[float]:
    """Predict steps that were not learned; return the relative errors."""
    drawn = steps(true, 200, seed=seed)
    found = fit.coefficients
    return [
        abs(step_seconds(found, prefill=p, decoding=d, context=c) / seconds - 1)
        for p, d, c, seconds in drawn
    ]


def fitted(drawn: list[StepSample], pool: StepFit | None = None) -> StepFit:
    fit = StepFit(pool)
    for step in drawn:
        fit.learn(step)
    return fit


def test_it_finds_the_coefficients_that_made_the_times():
    fit = fitted(steps(TRUE, 2000, seed=1))
    for found, true in zip(fit.coefficients, TRUE, strict=True):
        assert found == pytest.approx(true, rel=0.05)
    assert max(errors(fit, TRUE, 2)) < 0.01


def test_noise_and_hiccups_do_not_lead_it_astray():
    drawn = steps(TRUE, 2000, seed=3, noise=0.05)
    for i in range(0, 2000, 50):  # every 50th step is held up for seconds
        drawn[i] = drawn[i]._replace(seconds=drawn[i].seconds + 5)
    fit = fitted(drawn)
    # A fiftieth of the steps counts up to three times too long: 4 % at most, and noise.
    assert sum(errors(fit, TRUE, 4)) / 200 < 0.06


def test_no_coefficient_is_negative():
    # A worker that is faster with more context: nothing of the kind is believed.
    drawn = [StepSample(0, n, 1000 * (20 - n), 0.01 + 0.001 * n) for n in range(1, 17)] * 20
    assert min(fitted(drawn).coefficients) >= 0


def test_a_new_worker_is_like_the_others_until_it_says_otherwise():
    pool = fitted(steps(TRUE, 1000, seed=5))
    fit = StepFit(pool)
    assert fit.coefficients == pool.coefficients
    slow = tuple(3 * c for c in TRUE)
    for step in steps(slow, 8, seed=6):
        fit.learn(step)
    few = sum(errors(fit, slow, 7)) / 200
    for step in steps(slow, 300, seed=8):
        fit.learn(step)
    many = sum(errors(fit, slow, 7)) / 200
    assert many < 0.05 < few < 2 / 3  # with none it would be 2/3


def test_it_follows_a_worker_that_becomes_slower():
    fit = fitted(steps(TRUE, 2000, seed=9))
    slow = tuple(2 * c for c in TRUE)
    for step in steps(slow, 2000, seed=10):
        fit.learn(step)
    assert sum(errors(fit, slow, 11)) / 200 < 0.05


def test_without_a_step_there_is_a_guess_and_nonsense_is_not_learned():
    fit = StepFit()
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        fit.learn(StepSample(1, 0, 1, seconds))
    assert fit.coefficients == GUESS
    assert fit.num_steps == 0


@pytest.mark.parametrize("num_tokens", [1, 100, 512, 513, 2000])
def test_a_prompt_takes_as_long_as_its_chunks(num_tokens):
    fit, budget, decoding, context, start = TRUE, 256, 6, 3000, 400
    chunk, done, seconds = budget - decoding, 0, 0.0
    while done < num_tokens:
        number = min(chunk, num_tokens - done)
        done += number
        behind = context + start + done
        seconds += step_seconds(fit, prefill=number, decoding=decoding, context=behind)
    own = pace(fit, budget=budget, decoding=decoding, context=context)
    predicted = own.prefill_s(num_tokens, start)
    # The last chunk is counted as if it were as long as the others: less than half a percent here.
    assert predicted == pytest.approx(seconds, rel=0.005)


def test_nothing_to_compute_takes_no_time():
    assert pace(TRUE, budget=16, decoding=3, context=900).prefill_s(0, 10) == 0.0
