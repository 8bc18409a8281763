"""Every family computes what `transformers` computes: logits, and the tokens they lead to.

The goldens, and how they were made: `tests/golden/make_goldens.py`.  Each case is a checkpoint on
disk, loaded like any other, prefilled in chunks and decoded over KV pages in a mixed order.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rtp_jax.kernels.pages import StepInputs
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.models.spec import ModelSpec
from rtp_jax.parallel.devices import WHOLE, Devices, LoneDevice, spec_of
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner.kv_arrays import KV_SPEC, kv_arrays
from rtp_jax.runner.start import spread_over
from rtp_jax.weights import loader
from tests.golden import recipe

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json") if path.with_suffix(".npz").exists())
TOKENS, SEQUENCES, PAGE_SIZE, CONTEXT = 16, 2, 8, 128
CHUNK = 13  # neither a page nor a tile
DECODE_STEPS = 32
# Float32 sums of some hundred products in two orders, over a few layers: at most 4e-6 measured.
FLOAT32_TOLERANCE = 2e-5
# bfloat16 rounds to 8 bits, 0.4 %, some ten times in each layer; such errors add like a random
# walk over the layers, and logits move by a few percent of the largest: at most 5 % measured.
BFLOAT16_TOLERANCE = 0.08
BFLOAT16_CASES = ["llama_wide_tied", "mistral_window", "qwen2_plain", "qwen3_windows"]


class Golden(NamedTuple):
    """A case: its config, and what `transformers` computed."""

    config: dict
    saved: dict  # the config as `transformers` writes it
    seed: int
    arrays: dict[str, np.ndarray]


def golden(name: str) -> Golden:
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(facts["config"], facts["saved"], facts["seed"], arrays)


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """List the tensors of a checkpoint, from the weight table."""
    parameters = skeleton(spec, Target("cpu", jnp.dtype("float32"))).stored
    return {
        row.source: parameters[row.parameter].shape[len(row.row) :]
        for row in architecture(spec.architecture).weight_table(spec).rows
    }


class Run:
    """A model at work on one sequence, a few tokens at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        seed: int,
        dtype: str,
        devices: Devices = LoneDevice(jax.devices("cpu")[0]),
    ):
        shapes = shapes_of(spec)
        tensors = {name: recipe.tensor(name, shape, seed) for name, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors")
        bones = skeleton(spec, Target("cpu", jnp.dtype(dtype), mesh=devices.shape))
        table = architecture(spec.architecture).weight_table(spec)
        spread = spread_over(devices, bones)
        self.weights = bones.leaves(loader.load(folder, table, bones.stored, spread=spread))
        width = CONTEXT // PAGE_SIZE
        rng = np.random.default_rng(0)
        self.table = np.zeros((SEQUENCES, width), np.int32)
        self.table[0] = 1 + rng.permutation(width)
        kv = kv_layers(spec.num_layers, dtype)
        described = kv_arrays(spec, kv, num_pages=width + 1, page_size=PAGE_SIZE)
        self.kv = jax.tree.map(
            lambda x: devices.put(np.zeros(x.shape, x.dtype), KV_SPEC), described
        )
        self.length = 0

        def step(weights, tokens, kv, inputs):
            model = bones.assemble(weights)
            hidden, kv = model(tokens, kv, inputs)
            return model.unembed(hidden), kv

        specs = [spec_of(axes) for axes in bones.axes.values()]
        step = devices.over(step, (specs, WHOLE, KV_SPEC, WHOLE), (WHOLE, KV_SPEC))
        self.step = jax.jit(step, donate_argnums=2)

    def advance(self, ids: np.ndarray) -> np.ndarray:
        """Append tokens to the sequence and return their logits."""
        count = len(ids)
        tokens = np.zeros(TOKENS, np.int32)
        positions = np.zeros((1, TOKENS), np.int32)
        tokens[:count], positions[0, :count] = ids, self.length + np.arange(count)
        inputs = StepInputs(
            positions=positions,
            sequence_of=np.zeros(TOKENS, np.int32),
            num_tokens=np.int32(count),
            page_table=self.table,
            query_start=np.zeros(SEQUENCES, np.int32),
            query_count=np.array([count, 0], np.int32),
        )
        inputs = jax.tree.map(jnp.asarray, inputs)
        logits, self.kv = self.step(self.weights, jnp.asarray(tokens), self.kv, inputs)
        self.length += count
        return np.asarray(logits[:count])

    def prefill(self, prompt: np.ndarray) -> np.ndarray:
        """Append a prompt, chunk by chunk."""
        chunks = [prompt[i : i + CHUNK] for i in range(0, len(prompt), CHUNK)]
        return np.concatenate([self.advance(chunk) for chunk in chunks])


def check_float32(run: Run, arrays: dict[str, np.ndarray]) -> None:
    """Prefill a prompt and go on greedily: logits and ids are those of `transformers`."""
    prompt, greedy = arrays["prompt"], arrays["greedy"]

    logits = run.prefill(prompt)
    assert_close(logits, arrays, slice(len(prompt)), FLOAT32_TOLERANCE)
    np.testing.assert_array_equal(logits.argmax(-1), arrays["argmax"][: len(prompt)])

    ids, rows = [], []
    for _ in range(len(greedy)):
        ids.append(int(logits[-1].argmax()))
        logits = run.advance(np.array(ids[-1:]))
        rows.append(logits[0])
    decoded = np.stack(rows[:DECODE_STEPS])
    assert_close(decoded, arrays, slice(len(prompt), None), FLOAT32_TOLERANCE)
    assert ids == greedy.tolist()
    assert run.step._cache_size() == 1  # one program served prefill and decode


def assert_close(actual: np.ndarray, arrays: dict, rows: slice, tolerance: float) -> None:
    """Compare logits relative to the largest one; of a wide vocabulary, a part and its sum."""
    largest = float(arrays["largest"][rows].max())
    difference = np.abs(actual[:, arrays["columns"]] - arrays["logits"][rows]).max()
    assert difference <= tolerance * largest
    logsumexp = np.log(np.exp(np.float64(actual)).sum(-1))
    np.testing.assert_allclose(logsumexp, arrays["logsumexp"][rows], atol=tolerance * largest)


@pytest.mark.capability("Llama")
@pytest.mark.capability("Mistral")
@pytest.mark.capability("Qwen")
@pytest.mark.capability("rope scaling")
@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_transformers(name, tmp_path):
    config, _, seed, arrays = golden(name)
    check_float32(Run(read_spec(config), tmp_path, seed, "float32"), arrays)


@pytest.mark.capability("bfloat16")
@pytest.mark.parametrize("name", BFLOAT16_CASES)
def test_bfloat16_agrees_within_its_precision(name, tmp_path):
    config, _, seed, arrays = golden(name)
    run = Run(read_spec(config), tmp_path, seed, "bfloat16")
    prompt = arrays["prompt"]
    logits = run.prefill(np.concatenate([prompt, arrays["greedy"][:DECODE_STEPS]]))
    assert_close(logits, arrays, slice(None), BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_both_generations_of_a_config_mean_the_same(name):
    config, saved, _, _ = golden(name)
    assert read_spec(saved) == read_spec(config)
