"""Layers: one after the other they are the model, whatever family, and sequences do not meet."""

import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_tools.calibration.command import Chosen, layers_of
from checkpoints_tools.calibration.steps import MAX_SEQUENCES, steps_of
from checkpoints_tools.quantize import CALIBRATED
from checkpoints_tools.source import open_source
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from tests.checkpoints_tools.written import save
from tests.golden import recipe
from tests.models.test_goldens import FLOAT32_TOLERANCE, assert_close, golden

FAMILIES = ["llama_bias_llama3", "mistral_window", "qwen2_windows", "qwen3_odd_heads"]


def final_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    wide = np.float64(x)
    return wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps) * scale


def tensors_of(spec, seed: int) -> dict[str, np.ndarray]:
    parameters = skeleton(spec, Target("cpu", jnp.dtype("float32"))).stored
    return {
        row.source: recipe.tensor(row.source, parameters[row.parameter].shape[len(row.row) :], seed)
        for row in architecture(spec.architecture).weight_table(spec).rows
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_the_model(name, tmp_path):
    case = golden(name)
    spec = read_spec(case.config)
    tensors = tensors_of(spec, case.seed)
    source = open_source(str(save(tmp_path / "source", tensors)))
    prompt = [int(token) for token in case.arrays["prompt"]]
    # The prompt is in the middle, so that other sequences are before and behind it.
    sequences = [[5, 6, 7], prompt, prompt[:9]]
    steps = steps_of(sequences, len(prompt) + 20)
    layers = layers_of("gptq", source, spec, Chosen(CALIBRATED["gptq"], [], []), steps)
    states = layers.embedded()
    for file in layers.files:
        layers.advance(layers.read(file), states, solve=True)  # nothing is wanted
    found = final_norm(states[0], tensors["model.norm.weight"], spec.norm_eps)
    head = tensors["model.embed_tokens.weight" if spec.tied else "lm_head.weight"]
    here = slice(3, 3 + len(prompt))
    rows = slice(len(prompt))
    assert_close(found[here] @ head.T, case.arrays, rows, FLOAT32_TOLERANCE)


def test_steps_hold_every_sequence_once():
    lengths = [3, 60, 64, 1, 17, *[2] * 40]
    sequences = [list(range(100 * i, 100 * i + n)) for i, n in enumerate(lengths)]
    steps, found = steps_of(sequences, 64), []
    for step in steps:
        inputs, pages = step.inputs, set()
        assert step.ids.shape == (64,)
        for row in range(MAX_SEQUENCES):
            start, count = int(inputs.query_start[row]), int(inputs.query_count[row])
            if not count:
                continue
            found.append(step.ids[start : start + count].tolist())
            np.testing.assert_array_equal(
                inputs.positions[0, start : start + count], np.arange(count)
            )
            assert (inputs.sequence_of[start : start + count] == row).all()
            own = set(np.asarray(inputs.page_table[row])[: -(-count // 16)].tolist())
            assert 0 not in own
            assert not own & pages
            pages |= own
        assert step.num_tokens == int(inputs.query_count.sum())
    assert found == sequences
