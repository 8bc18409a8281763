"""Penalties, bias and masks do to the logits what NumPy does; logprobs agree with float64."""

import functools

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError, jaxtyped

from rtp_jax.runner import sampler
from tests.runner.sampling_cases import random_logits, row_options, run, wide_options

ROWS, VOCAB, LENGTH = 8, 1000, 64


def penalised_here(logits, history, **options) -> np.ndarray:
    """Ask rtp_jax for the penalised logits."""
    return np.asarray(
        sampler._penalised(
            jnp.asarray(logits), jnp.asarray(history), row_options(len(logits), **options)
        )
    )


def penalised_by_oracle(
    logits, ids, position, prompt_length, presence, frequency, repetition
) -> np.ndarray:
    """Penalise one row in float64, token by token."""
    logits = logits.astype(np.float64)
    for id_ in set(ids[:position].tolist()):
        logits[id_] = logits[id_] / repetition if logits[id_] > 0 else logits[id_] * repetition
    for id_ in set(ids[prompt_length:position].tolist()):
        logits[id_] -= frequency * (ids[prompt_length:position] == id_).sum()
        logits[id_] -= presence
    return logits


def test_penalties_agree_with_numpy():
    random = np.random.default_rng(0)
    logits = random_logits(ROWS, VOCAB)
    history = random.integers(0, 50, (ROWS + 2, LENGTH), np.int32)  # few ids: many repeats
    options = {
        "presence": np.float32([0, 1.5, 0, -2, 0.5, 0, 1, 0]),
        "frequency": np.float32([0, 0, 0.7, 2, -0.5, 0, 1, 0]),
        "repetition": np.float32([1, 1, 1, 1, 1.3, 0.8, 2, 1.1]),
        "positions": np.int32([9, 64, 64, 30, 30, 30, 0, 20]),
        "prompt_lengths": np.int32([4, 10, 64, 30, 5, 0, 0, 20]),
        "slots": np.int32([9, 8, 7, 6, 5, 4, 3, 3]),
    }
    found = penalised_here(logits, history, **options)
    for row in range(ROWS):
        expected = penalised_by_oracle(
            logits[row],
            history[options["slots"][row]],
            *(options[name][row] for name in ("positions", "prompt_lengths")),
            *(float(options[name][row]) for name in ("presence", "frequency", "repetition")),
        )
        np.testing.assert_allclose(found[row], expected, rtol=3e-7, atol=3e-6)  # float32
    assert (found[0] == logits[0]).all()


def test_penalties_ignore_what_lies_beyond_the_position_and_ids_that_are_no_tokens():
    logits = np.zeros((1, VOCAB), np.float32)
    history = np.int32([[5, VOCAB + 3, 7, 9]])
    found = penalised_here(logits, history, presence=1.0, positions=3)
    assert np.flatnonzero(found[0]).tolist() == [5, 7]


def test_options_apply_in_vllm_order():
    """Bias comes before the repetition penalty, and a mask before both: -inf stays."""
    logits = np.full((8, VOCAB), -5.0, np.float32)
    logits[:, 3], logits[:, 4] = -1.0, 0.5
    history = np.full((1, LENGTH), 3, np.int32)
    wide = wide_options(
        8, VOCAB, allowed={1: [4, 9]}, biases={0: {3: 2.0}, 1: {3: 50.0}, 2: {3: 2.0}}
    )
    options = {"repetition": [1.9, 1, 2.1] + [1] * 5, "positions": 4}
    ids = run(logits, history=history, wide=wide, **options).token_ids
    # (-1 + 2) / 1.9 is more than 0.5 and (-1 + 2) / 2.1 is less
    assert ids[:4].tolist() == [3, 4, 4, 4]


def test_min_p_is_relative_to_the_most_likely():
    logits = np.log(np.float32([0.5, 0.26, 0.24] + [1e-9] * (VOCAB - 3)))[None].repeat(ROWS, 0)
    drawn = [
        run(logits, temperatures=1.0, min_ps=0.5, seeds=range(n, n + ROWS))
        for n in range(0, 99, ROWS)
    ]
    assert {int(id_) for sampled in drawn for id_ in sampled.token_ids} == {0, 1}


@pytest.mark.parametrize("padding", [0, 24])
def test_logprobs_agree_with_float64(padding):
    logits = random_logits(ROWS, VOCAB)
    logits[1, :990] = -np.inf
    padded = np.pad(logits, ((0, 0), (0, padding)), constant_values=99.0)
    wide = wide_options(
        ROWS, VOCAB, allowed={0: [11]}, logprob_ids={0: [1, 2, 999], 5: [logits[5].argmax()]}
    )
    targets = [-1, -1, 7, 8, -1, -1, -1, 999]
    found = run(
        padded,
        wide=wide,
        vocab_size=VOCAB,
        temperatures=[0, 1, 0, 1, 1, 0, 1, 0],
        targets=targets,
        num_logprobs=[20, 5, 0, 3, 20, 1, 2, 0],
    )
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    rows = np.arange(ROWS)
    assert found.token_ids[0] == 11
    assert found.token_ids[[2, 3, 7]].tolist() == [7, 8, 999]
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)  # float32 sums
    close(found.logprobs, exact[rows, found.token_ids])
    ranks = 1 + (logits > logits[rows, found.token_ids][:, None]).sum(axis=1)
    assert found.ranks.tolist() == ranks.tolist()
    order = np.argsort(-logits, axis=1, kind="stable")[:, :20]
    finite = np.take_along_axis(logits, order, axis=1) > -np.inf
    assert (found.top_ids[finite] == order[finite]).all()
    assert (found.top_ids < VOCAB).all()
    close(found.top_logprobs, np.take_along_axis(exact, order, axis=1))
    close(found.chosen_logprobs[0, :3], exact[0, [1, 2, 999]])
    close(found.chosen_logprobs[5, 0], found.top_logprobs[5, 0])


def test_logprobs_are_zeros_where_nobody_wants_them():
    found = run(random_logits(ROWS, VOCAB), temperatures=1.0)
    assert not found.logprobs.any()
    assert not found.top_ids.any()
    assert not found.chosen_logprobs.any()


def test_a_vocabulary_smaller_than_the_report():
    found = run(random_logits(8, 12), num_logprobs=20)
    assert found.top_ids.shape == (8, 20)
    assert sorted(found.top_ids[0, :12].tolist()) == list(range(12))
    assert (found.top_logprobs[:, 12:] == -np.inf).all()


def test_shapes_are_as_written():
    """Every annotation of `sample` is checked while jit traces it."""
    checked = jaxtyped(typechecker=beartype.beartype)(sampler.sample)
    step = jax.jit(functools.partial(checked, vocab_size=VOCAB))
    logits, history = jnp.zeros((8, VOCAB)), jnp.zeros((2, LENGTH), jnp.int32)
    wide = wide_options(8, VOCAB)
    found = step.eval_shape(logits, history, row_options(8, temperatures=1.0), wide)
    assert {leaf.dtype.name for leaf in found} == {"int32", "float32", "bool"}
    with pytest.raises(TypeCheckError, match="logits"):
        step.eval_shape(logits.astype(jnp.bfloat16), history, row_options(8), wide)


def test_the_program_for_a_gpu_samples_all_rows_in_one_go():
    """Nothing loops but the two bisections, and nothing calls the host."""
    logits = jax.ShapeDtypeStruct((16, VOCAB), jnp.float32)
    history = jax.ShapeDtypeStruct((16, LENGTH), jnp.int32)
    step = jax.jit(functools.partial(sampler.sample, vocab_size=VOCAB))
    traced = step.trace(logits, history, row_options(16), wide_options(16, VOCAB))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("stablehlo.while") == 2
    assert "callback" not in program
