"""AWQ: factors change no output before rounding, and make outputs better after it."""

from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest

from checkpoints_tools.calibration import awq
from checkpoints_tools.calibration.grid import numbers_of, plainly
from checkpoints_tools.calibration.halves import HALVES, Inputs, Layer
from checkpoints_tools.calibration.layer_run import PROGRAMS, LayerRun
from checkpoints_tools.calibration.layers import spread_of
from checkpoints_tools.calibration.methods import divided, fold_into_carrier, fold_into_norm
from checkpoints_tools.calibration.steps import steps_of
from rtp_jax.models.registry import read_spec
from tests.checkpoints_tools.calibration.matrices import KINDS, inputs, matrix
from tests.tiny_model import CONFIG

FAMILIES = {
    "qwen3": CONFIG,
    "qwen2": {**CONFIG, "architectures": ["Qwen2ForCausalLM"], "head_dim": 16},
    "llama": {
        **CONFIG,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    },
}


def random_layer(programs: LayerRun, stored: type) -> Layer:
    """Draw the parameters of a layer; norms and biases are rounded as they are stored."""
    random, numbers = np.random.default_rng(3), {}
    for path, shape in programs.shapes.items():
        noise = random.standard_normal(shape)
        numbers[path] = np.float32(noise / np.sqrt(shape[-1]) if len(shape) == 2 else 1 + noise / 4)
        if path in ("mlp.up.kernel", "attention.value.kernel"):  # features of unlike sizes
            numbers[path] *= np.exp(noise[:, :1]).astype(np.float32)
    numbers = {path: array.astype(stored).astype(np.float32) for path, array in numbers.items()}
    matrices = frozenset(p.removesuffix(".kernel") for p in numbers if p.endswith(".kernel"))
    dtypes = dict.fromkeys(numbers, np.dtype(stored))
    spread = spread_of(programs.spec)
    return Layer(0, numbers, matrices, KINDS[1], MappingProxyType(spread), dtypes)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("qwen3", np.float32),
        ("qwen3", ml_dtypes.bfloat16),
        ("llama", np.float32),
        ("qwen2", ml_dtypes.bfloat16),
    ],
)
def test_factors_change_no_output(name, stored):
    programs = LayerRun(read_spec(FAMILIES[name]))
    layer = random_layer(programs, stored)
    (step,) = steps_of([list(range(40)), list(range(20))], 64)
    start = inputs(64, 64)
    x, expected, before = start, start, dict(layer.numbers)
    for half in HALVES:
        run = PROGRAMS[half.name]
        expected = programs.half(run, before, expected, step, None)
        given = []
        for program in (run.enter, run.between):
            seen = Inputs(False, 1)
            seen.add(programs.run(program, layer.numbers, x, step, None)[: step.num_tokens])
            given.append(seen)
            if program is run.enter:
                fold_into_norm(half, layer, seen)
        fold_into_carrier(half, layer, given[1])
        x = programs.half(run, layer.numbers, x, step, None)
        assert np.ptp(before[half.norm] / layer.numbers[half.norm]) > 0.1
        kernel = f"{half.back}.kernel"
        assert np.ptp(layer.numbers[kernel] / before[kernel]) > 0.1
    apart = np.abs(x - expected)[: step.num_tokens].max() / np.abs(expected).max()
    # Float32 sums; biases are rounded once more as they are stored, by 2^-9 of themselves.
    has_bias = any(path.endswith(".bias") for path in layer.numbers)
    assert apart < (0.01 if has_bias and stored != np.float32 else 2e-6)


def test_what_is_told_of_inputs_follows_the_factors():
    seen, x = Inputs(False, 3), inputs(50, 8)
    seen.add(x[:20])
    seen.add(x[20:])
    np.testing.assert_array_equal(seen.sample, x[::3])
    np.testing.assert_allclose(seen.mean, np.abs(np.float64(x)).mean(0), rtol=1e-6)
    factors = np.arange(1, 9, dtype=np.float32)
    seen.divide(factors)
    np.testing.assert_allclose(seen.sample, x[::3] / factors)
    np.testing.assert_allclose(seen.mean, np.abs(np.float64(x)).mean(0) / factors, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_makes_outputs_better(kind):
    x, numbers = inputs(300, 128), matrix(48, 128)
    factors = awq.search([numbers[:16], numbers[16:]], x, np.abs(x).mean(0), kind)
    plain = awq.output_error(x, numbers - numbers_of(plainly(numbers, kind)))
    scaled = numbers_of(plainly(numbers * factors, kind)) / factors
    assert awq.output_error(x, numbers - scaled) < 0.9 * plain


def test_shared_factors_are_shared():
    x, numbers = inputs(300, 64), matrix(48, 64)
    spread = np.repeat(np.arange(32).reshape(2, 16), 2, axis=0).reshape(-1)
    magnitude = np.bincount(spread, np.abs(x).mean(0)) / 2
    factors = awq.search([numbers], x, magnitude, KINDS[1], spread)
    assert factors.shape == (32,)
    assert np.ptp(factors) > 0.1


def test_inputs_that_never_come_have_a_factor():
    magnitude = np.array([0.0, 1.0, 2.0])
    for alpha in awq.ALPHAS:
        factors = awq.scales_for(magnitude, alpha)
        assert np.isfinite(factors).all()
        assert (factors > 0).all()
    np.testing.assert_array_equal(awq.scales_for(np.zeros(4), 0.5), np.ones(4))


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_makes_the_part_of_each_group_better(kind):
    x, numbers = inputs(300, 128), matrix(300, 128)  # more rows than are done at once
    plain, found = numbers_of(plainly(numbers, kind)), numbers_of(awq.clipped(numbers, x, kind))
    for start in range(0, 128, kind.group):
        here = slice(start, start + kind.group)
        before, after = (
            np.square(np.float64(x[:, here]) @ np.float64(each - numbers)[:, here].T).sum(0)
            for each in (plain, found)
        )
        assert (after <= before * (1 + 1e-6)).all()
        assert after.sum() < 0.98 * before.sum()


def test_a_norm_that_cannot_be_divided_is_kept():
    norm = np.array([0.0, 1.0, 1e38], np.float32)
    smaller, real = divided(norm, np.array([2.0, 2.0, 1e-3]), np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(smaller, np.array([0.0, 0.5, 1e38], np.float32))
    np.testing.assert_array_equal(real, [1.0, 2.0, 1.0])
