"""Min-p, top-k and top-p keep exactly the tokens that a float64 oracle keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.runner.truncation import CANDIDATES, thresholds
from tests.runner.sampling_cases import row_options

MARGIN = 1e-6  # of probability: nearer to a boundary than this, float32 may differ from float64
compiled = jax.jit(lambda x, options: thresholds(x, jnp.max(x, axis=1), options))


def kept_here(logits: np.ndarray, **options) -> np.ndarray:
    """Ask rtp_jax which tokens are kept: bool [rows, vocab]."""
    lowest = np.asarray(compiled(jnp.asarray(logits), row_options(len(logits), **options)))
    return (logits >= lowest[:, None]) & (logits > -np.inf)


def kept_by_oracle(logits, temperature, top_k, top_p, min_p) -> tuple[np.ndarray, bool]:
    """Keep tokens of one row in float64; also say if a boundary is too near to be judged."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    kept, near = logits > -np.inf, False
    if min_p > 0:
        near |= bool((np.abs(weights / min_p - 1)[weights < 1] < MARGIN).any())
        kept &= weights >= min_p
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weights = np.where(kept, weights, 0) / weights[kept].sum()
        _, inverse = np.unique(logits, return_inverse=True)
        mass = np.bincount(inverse, weights=weights)
        above = (np.cumsum(mass[::-1])[::-1] - mass)[inverse]  # of what is strictly more likely
        near |= bool((kept & (np.abs(above - top_p) < MARGIN)).any())
        kept &= above < top_p
    return kept, near


def random_case(random: np.random.Generator, rows: int, vocab: int):
    """Make logits of several shapes, some with -inf, and options of every kind."""
    logits = random.normal(size=(rows, vocab)) * random.choice([0.3, 1, 3, 10], size=(rows, 1))
    zipf = random.random(rows) < 0.3
    logits[zipf] -= 1.5 * np.log(1 + random.permutation(vocab))
    logits[random.random((rows, vocab)) < random.choice([0, 0.5], size=(rows, 1))] = -np.inf
    logits[:, 0] = random.normal(size=rows)
    ks = random.choice([0, 1, 2, 50, CANDIDATES, CANDIDATES + 1, 300, vocab, 2 * vocab], size=rows)
    options = {
        "temperatures": random.choice([0.1, 0.7, 1.0, 1.5, 2.0], size=rows),
        "top_ks": ks,
        "top_ps": random.choice([1e-4, 0.3, 0.5, 0.9, 0.99, 1.0, 1.0], size=rows),
        "min_ps": random.choice([0, 0, 0, 0.01, 0.1, 0.5, 1.0], size=rows),
    }
    options = {name: value.astype(np.float32) for name, value in options.items()}
    return logits.astype(np.float32), options | {"top_ks": ks.astype(np.int32)}


@pytest.mark.capability("sampling")
@pytest.mark.parametrize(("vocab", "rows", "rounds"), [(1000, 250, 16), (4096, 250, 4)])
def test_five_thousand_random_rows_keep_what_the_oracle_keeps(vocab, rows, rounds):
    random = np.random.default_rng(vocab)
    undecided = 0
    for _ in range(rounds):
        logits, options = random_case(random, rows, vocab)
        kept = kept_here(logits, **options)
        for row in range(rows):
            chosen = [float(options[name][row]) for name in ("temperatures", "top_ps", "min_ps")]
            temperature, top_p, min_p = chosen
            expected, near = kept_by_oracle(
                logits[row], temperature, int(options["top_ks"][row]), top_p, min_p
            )
            undecided += near
            assert near or (kept[row] == expected).all(), (vocab, row, chosen)
            assert kept[row].any()
    assert undecided < 0.01 * rows * rounds, undecided


def test_ties_are_kept_or_dropped_together():
    """At the boundary of top-k all ties stay, as in vLLM; of top-p too."""
    logits = np.repeat(np.float32([3, 2, 1, 0]), [1, 3, 400, 596])[None].repeat(6, axis=0)
    kept = kept_here(
        logits,
        temperatures=1.0,
        top_ks=[1, 2, 4, 5, 300, 405],
    )
    assert kept.sum(axis=1).tolist() == [1, 4, 4, 404, 404, 1000]
    mass = np.exp(logits[0].astype(np.float64))
    mass /= mass.sum()
    ps = [mass[0] * 0.9, mass[0] * 1.1, mass[:4].sum() * 0.99, mass[:4].sum() * 1.01, 0.5, 0.9]
    kept = kept_here(logits, temperatures=1.0, top_ps=ps)
    assert kept.sum(axis=1).tolist() == [1, 4, 4, 404, 404, 1000]


def test_equal_logits_are_all_kept():
    for top_k, top_p in ((5, 1.0), (0, 0.1), (700, 0.5)):
        logits = np.zeros((2, 1000), np.float32)
        assert kept_here(logits, temperatures=1.0, top_ks=top_k, top_ps=top_p).all()


def test_huge_and_tiny_logits_end_the_search():
    logits = np.zeros((3, 1000), np.float32)
    logits[0] = np.linspace(-3e38, 3e38, 1000)
    logits[1] = np.geomspace(1e-38, 1e38, 1000)
    logits[2, 500:] = -1e9
    kept = kept_here(logits, temperatures=1.0, top_ks=[500, 500, 0], top_ps=[1, 1, 0.99])
    assert kept.sum(axis=1).tolist() == [500, 500, 500]


def test_top_p_counts_only_what_top_k_and_min_p_left():
    logits = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]]).repeat(4, axis=0))
    kept = kept_here(
        logits,
        temperatures=1.0,
        top_ks=[2, 0, 3, 2],
        min_ps=[0, 0.4, 0, 0],
        top_ps=[0.55, 0.5, 0.8, 0.6],
    )
    # 0.4 of 0.7 is 0.571: enough for 0.55 and too little for 0.6; min-p leaves 0.4, 0.3, 0.2
    assert kept.sum(axis=1).tolist() == [1, 2, 3, 2]
