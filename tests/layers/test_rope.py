"""Rotary embedding: what it promises, and the rules of its variants where they are simple.

That every variant agrees with `transformers` is shown by `tests/models/test_goldens.py`.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.layers.rope import rotate, rotation
from rtp_jax.layers.rope_frequencies import (
    Linear,
    Llama3,
    Rope,
    Unscaled,
    Yarn,
    yarn_attention_factor,
)

LLAMA3 = Llama3(8.0, 1.0, 4.0, 8192)
YARN = Yarn(4.0, 4096, yarn_attention_factor(4.0))
SCALINGS = [Unscaled(), Linear(4.0), LLAMA3, YARN]


def turned(x, rope: Rope, position: int):
    return rotate(x, rotation(rope, jnp.full(x.shape[0], position, jnp.int32)))


def vectors(seed: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, 2, 64)), jnp.float32)


def test_position_zero_changes_nothing():
    np.testing.assert_array_equal(turned(vectors(0), Rope(64, 1e4), 0), vectors(0))


def test_pairs_are_halves_apart():
    x = jnp.zeros((1, 1, 4)).at[0, 0, 1].set(1.0)
    angle = 3 * 100.0**-0.5  # pair 1 of two, theta 100
    expected = [0, np.cos(angle), 0, np.sin(angle)]
    np.testing.assert_allclose(turned(x, Rope(4, 100.0), 3)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
def test_scores_depend_on_distance_alone(scaling):
    rope = Rope(64, 1e4, scaling)

    def score(query_at: int, key_at: int) -> np.ndarray:
        query, key = turned(vectors(1), rope, query_at), turned(vectors(2), rope, key_at)
        return np.asarray((query * key).sum(-1))

    # Angles of some hundred radians carry errors of 1e-5 in float32.
    np.testing.assert_allclose(score(700, 650), score(60, 10), atol=2e-3)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
def test_no_variant_turns_faster_than_the_plain_one(scaling):
    plain, scaled = Rope(64, 1e4).frequencies(), Rope(64, 1e4, scaling).frequencies()
    assert (scaled <= plain).all()
    assert (np.diff(scaled) < 0).all()  # fastest first


@pytest.mark.parametrize("scaling", [LLAMA3, YARN], ids=["Llama3", "Yarn"])
def test_fast_turns_are_kept_and_slow_ones_divided(scaling):
    plain, scaled = Rope(64, 5e5).frequencies(), Rope(64, 5e5, scaling).frequencies()
    np.testing.assert_allclose(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[-1], plain[-1] / scaling.factor)


def test_yarn_scales_what_it_turns():
    assert yarn_attention_factor(4.0) == pytest.approx(0.1 * np.log(4) + 1)
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(4.0, 0.7, 0.7) == 1.0  # as DeepSeek's configs have it
    length = jnp.linalg.norm(turned(vectors(0), Rope(64, 1e4, YARN), 9), axis=-1)
    expected = jnp.linalg.norm(vectors(0), axis=-1) * YARN.attention_factor
    np.testing.assert_allclose(length, expected, rtol=1e-5)
