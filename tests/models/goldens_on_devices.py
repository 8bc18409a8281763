"""Models that devices share compute what `transformers` computes; `tests/parallel` runs this."""

import jax
import numpy as np
import pytest

from rtp_jax.engine.sharing import mesh_of
from rtp_jax.models.registry import read_spec
from rtp_jax.parallel.devices import DeviceMesh
from tests.models.test_goldens import FLOAT32_TOLERANCE, Run, check_float32, golden

FULL = pytest.mark.full
CASES = [
    ("llama_plain", 4),  # two KV heads: two devices have the same one
    ("qwen2_plain", 2),
    pytest.param("llama_wide_tied", 4, marks=FULL),
    pytest.param("mistral_window", 2, marks=FULL),
    pytest.param("qwen2_plain", 4, marks=FULL),
    *(pytest.param("qwen3_plain", size, marks=FULL) for size in (2, 4)),
    pytest.param("qwen3_windows", 4, marks=FULL),
]


def mesh(spec, size: int) -> DeviceMesh:
    return DeviceMesh(jax.devices("cpu")[:size], mesh_of(spec, size))


@pytest.mark.parametrize(("name", "size"), CASES)
def test_float32_agrees_with_transformers(name, size, tmp_path):
    config, _, seed, arrays = golden(name)
    spec = read_spec(config)
    run = Run(spec, tmp_path, seed, "float32", mesh(spec, size))
    check_float32(run, arrays)
    largest = max(run.weights, key=lambda array: array.nbytes)
    assert largest.addressable_shards[0].data.nbytes * size == largest.nbytes
    (group,) = run.kv
    held = max(spec.num_kv_heads // size, 1)
    assert {part.data.shape[3] for part in group.pages.addressable_shards} == {held}


def test_biases_are_added_once(tmp_path):
    config, _, seed, arrays = golden("llama_plain")
    config |= {"attention_bias": True, "mlp_bias": True}
    spec = read_spec(config)
    assert spec.qkv_bias
    assert spec.output_bias
    assert spec.mlp_bias
    logits = {}
    for name, given in {"one": {}, "several": {"devices": mesh(spec, 4)}}.items():
        folder = tmp_path / name
        folder.mkdir()
        logits[name] = Run(spec, folder, seed, "float32", **given).prefill(arrays["prompt"])
    one, several = logits["one"], logits["several"]
    assert np.abs(one - several).max() <= FLOAT32_TOLERANCE * np.abs(one).max()
