"""Drawn tokens are distributed as they should be, and a row's token depends on that row alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.runner.draw import draw, most_likely, uniforms
from tests.runner.sampling_cases import random_logits, run
from tests.runner.test_sampler_sets import kept_by_oracle

DRAWS = 20_000
VOCAB = 600
GOLDEN_NUMBERS = [14131687, 13211172, 6994859]  # of 2^24
SETTINGS = [
    {"temperatures": 1.0},
    {"temperatures": 0.3},
    {"temperatures": 2.0},
    {"temperatures": 1.0, "top_ks": 10},
    {"temperatures": 1.5, "top_ks": 200},
    {"temperatures": 1.0, "top_ps": 0.9},
    {"temperatures": 2.0, "top_ps": 0.5},
    {"temperatures": 1.0, "min_ps": 0.05},
    {"temperatures": 0.8, "top_ks": 40, "top_ps": 0.95},
    {"temperatures": 1.2, "top_ks": 300, "top_ps": 0.99, "min_ps": 0.001},
]


draw_token = jax.jit(draw)  # one program, not one for each operation


def chi_square_p(statistic: float, freedom: int) -> float:
    """Approximate the upper tail of chi-square by Wilson and Hilferty's cube root."""
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.capability("sampling")
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_draws_follow_the_distribution(number):
    options = SETTINGS[number]
    logits = random_logits(1, VOCAB, seed=number, scale=1.5)
    wanted = {"top_ks": 0, "top_ps": 1.0, "min_ps": 0.0} | options
    kept, _ = kept_by_oracle(
        logits[0], wanted["temperatures"], wanted["top_ks"], wanted["top_ps"], wanted["min_ps"]
    )
    weights = np.where(kept, np.exp(logits[0].astype(np.float64) / options["temperatures"]), 0)
    expected = DRAWS * weights / weights.sum()
    ids = run(
        logits.repeat(DRAWS, axis=0), seeds=number, positions=np.arange(DRAWS), **options
    ).token_ids
    counts = np.bincount(ids, minlength=VOCAB)
    assert counts[~kept].sum() == 0
    many = expected >= 5  # chi-square wants no rare bins: the others count together
    counts = np.append(counts[many], counts[~many].sum())
    expected = np.append(expected[many], expected[~many].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert chi_square_p(statistic, len(counts) - 1) > 0.001


def test_the_edges_of_the_uniform_number_draw_what_is_possible():
    logits = np.full((4, 1000), -np.inf, np.float32)
    logits[:, [3, 500, 901]] = [0.0, 1.0, 0.0]
    logits[:, 999] = -200.0  # exp of it is no float32
    largest = jnp.full(4, 1.0)
    numbers = jnp.asarray(np.float32([0, 1 - 2**-24, 1.0, 1.5]))
    ids = draw_token(jnp.asarray(logits), largest, jnp.full(4, -jnp.inf), jnp.ones(4), numbers)
    assert ids.tolist() == [3, 901, 901, 901]
    ids = draw_token(jnp.asarray(logits), largest, jnp.full(4, 0.5), jnp.ones(4), numbers)
    assert ids.tolist() == [500] * 4


def test_running_sums_are_exact_enough_over_a_large_vocabulary():
    """The token found for u lies where the float64 distribution function passes u."""
    logits = random_logits(1, 151_936, scale=2.0).repeat(64, axis=0)
    numbers = (np.arange(64) + 0.5).astype(np.float32) / 64
    largest = jax.jit(most_likely, static_argnums=(1, 2))(jnp.asarray(logits), 151_936, None)[1]
    none = jnp.full(64, -jnp.inf)
    ids = np.asarray(
        draw_token(jnp.asarray(logits), largest, none, jnp.ones(64), jnp.asarray(numbers))
    )
    weights = np.exp(logits[0].astype(np.float64))
    ends = np.cumsum(weights) / weights.sum()
    starts = ends - weights / weights.sum()
    slack = 2e-6  # measured: below 5e-7
    assert (starts[ids] - slack < numbers).all()
    assert (ends[ids] + slack > numbers).all()


def test_uniform_numbers_are_what_they_were():
    """Seeded outputs must survive releases: these come from threefry, not from a default."""
    numbers = uniforms(
        jnp.asarray([0, 1, 2**32 - 1], jnp.uint32), jnp.asarray([0, 7, 100_000], jnp.int32)
    )
    assert (np.asarray(numbers) * 2**24).tolist() == GOLDEN_NUMBERS


def test_a_row_depends_on_itself_alone():
    """Each row of a mixed batch gives what it gives in batches of rows like itself."""
    rows, vocab = 16, 3000
    logits = random_logits(rows, vocab, scale=1.0)
    kinds = [
        {"temperatures": 0.0},
        {"temperatures": 1.0},
        {"temperatures": 1.0, "top_ks": 20},
        {"temperatures": 1.0, "top_ps": 0.97},
        {"temperatures": 1.0, "top_ks": 1500, "top_ps": 0.9},
        {"temperatures": 2.0, "min_ps": 0.1},
        {"temperatures": 1.0, "repetition": 1.3, "frequency": 0.5},
        {"temperatures": 1.0, "num_logprobs": 5},
    ]
    neutral = {"top_ps": 1.0, "repetition": 1.0, "num_logprobs": -1}
    names = {name for kind in kinds for name in kind}
    mixed = {
        name: [kinds[row % 8].get(name, neutral.get(name, 0)) for row in range(rows)]
        for name in names
    }
    history = np.random.default_rng(1).integers(0, vocab, (rows, 32))
    alike = {"seeds": range(rows), "slots": range(rows), "positions": 32, "prompt_lengths": 10}
    together = run(logits, history=history, **mixed, **alike)
    for number, kind in enumerate(kinds):
        alone = run(logits, history=history, **kind, **alike)
        mine = np.arange(rows) % 8 == number
        assert (alone.token_ids[mine] == together.token_ids[mine]).all(), kind
        if "num_logprobs" in kind:
            assert (alone.logprobs[mine] == together.logprobs[mine]).all()
            assert (alone.top_ids[mine] == together.top_ids[mine]).all()
    order = np.random.default_rng(2).permutation(rows)
    shuffled = run(
        logits[order],
        history=history,
        **{name: np.asarray(values)[order] for name, values in mixed.items()},
        **alike | {"seeds": order, "slots": order},
    )
    assert (shuffled.token_ids == together.token_ids[order]).all()


def test_the_size_of_the_batch_does_not_matter():
    logits = random_logits(16, 3000, scale=1.0)
    options = {"temperatures": 1.0, "top_ps": 0.95}
    all_ids = run(logits, seeds=np.arange(16), **options).token_ids
    for rows in (1, 8):
        ids = run(logits[:rows], seeds=np.arange(rows), **options).token_ids
        assert (ids == all_ids[:rows]).all()
