"""Checkpoints that come quantized: every layout loads to the bit, and computes what it says.

`tests/golden/quantized_layouts.py` writes them and says what their numbers are.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library, packing
from rtp_jax.kernels.pages import KVGroup, StepInputs, storage_dtype
from rtp_jax.layers.encoding import ORDER, SCALES, VALUES, ZEROS
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.models.structure import Skeleton
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray
from rtp_jax.quant.schemes import dequantize
from rtp_jax.runner.encoders import encoders
from rtp_jax.weights.loader import load
from tests.golden.quantized_layouts import (
    CASES,
    CONFIG,
    LAYERS,
    save,
    tensors_of,
    with_quantization,
)

TOKENS, PAGE_SIZE = 16, 16
# How far logits may be from those of the float32 twin, relative to the largest.  Numbers are equal,
# so what is left is the order of sums; a dynamic scheme rounds every input to 8 bits as well, and
# eight roundings of some 0.4 % (int8) or 3 % (float8) add up like a random walk.
EXACT, INT8, FLOAT8 = 2e-5, 0.06, 0.15
MODULES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def native_level() -> str:
    """Load the C++ kernels, or skip the test."""
    if reason := library.load(native_cache()):
        pytest.skip(reason)
    found = library.loaded()
    assert found is not None
    return found.level


def loaded(folder: Path, target: Target) -> tuple[Skeleton, dict[str, jax.Array]]:
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    bones = skeleton(spec, target)
    table = architecture(spec.architecture).weight_table(spec)
    return bones, load(folder, table, bones.stored, encoders=encoders(bones))


def place(bones: Skeleton, module: str, layer: int) -> tuple[str, int | None]:
    """Say where a matrix is held: a path, and its row of the stack if there is one."""
    own = f"layers.{layer}.{module}.kernel"
    return (own, None) if own in bones.encodings else (f"layers.{module}.kernel", layer)


def numbers_of(
    bones: Skeleton, arrays: dict[str, jax.Array], module: str, layer: int
) -> np.ndarray:
    """Decode one matrix as it is held, its columns in their own order."""
    path, row = place(bones, module, layer)
    scheme, layout, outer, inner, dtype, *_ = bones.encodings[path]
    values, scales, zeros, order = (
        np.asarray(arrays[path + end] if row is None else arrays[path + end][row])
        if path + end in arrays
        else None
        for end in (VALUES, SCALES, ZEROS, ORDER)
    )
    assert values is not None
    if layout == NATIVE:
        packed = QuantizedArray(jnp.asarray(values[None]), None, scheme, NATIVE, outer, inner)
        numbers = packing.unpack(packed, 0, dtype)
    else:
        assert scales is not None
        numbers = dequantize(values, scales, scheme, zeros)
    if order is None:
        return numbers
    in_place = np.empty_like(numbers)
    in_place[:, order] = numbers
    return in_place


def prefill(bones: Skeleton, dtype: str, weights: list[jax.Array]) -> jax.Array:
    """Compute the logits of one prompt."""
    inputs = StepInputs(
        positions=jnp.arange(TOKENS)[None],
        sequence_of=jnp.zeros(TOKENS, jnp.int32),
        num_tokens=jnp.int32(TOKENS),
        page_table=jnp.ones((1, 1), jnp.int32),
        query_start=jnp.zeros(1, jnp.int32),
        query_count=jnp.full(1, TOKENS, jnp.int32),
    )
    pages = jnp.zeros((2, LAYERS, 2, 2, PAGE_SIZE, 32), storage_dtype(jnp.dtype(dtype)))
    tokens = jnp.arange(TOKENS, dtype=jnp.int32) * 17 % 300
    model = bones.assemble(weights)
    return model.unembed(model(tokens, (KVGroup(pages, None),), inputs)[0])


def target_of(dtype: str, native: str | None) -> Target:
    return Target("cpu", jnp.dtype(dtype), native=native)


@functools.cache
def written(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return tensors_of(CASES[name])


@functools.cache
def compiled(bones_of: str, dtype: str, native: str | None):
    """Compile a prefill, of a case or of the plain model: its twins share a program."""
    config = CONFIG if bones_of == "plain" else with_quantization(CASES[bones_of].config)
    bones = skeleton(read_spec(config), target_of(dtype, native))
    return program(bones, dtype)


def program(bones: Skeleton, dtype: str):
    """Compile a prefill."""
    return jax.jit(functools.partial(prefill, bones, dtype))


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_what_the_layout_says(name, tmp_path):
    check_numbers(name, tmp_path, native=None)


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_the_same_when_packed(name, tmp_path):
    check_numbers(name, tmp_path, native=native_level())


def check_numbers(name: str, tmp_path: Path, native: str | None) -> None:
    tensors, dense = written(name)
    folder = save(tmp_path, tensors, CASES[name].config)
    bones, arrays = loaded(folder, target_of("float32", native))
    for path, module in MODULES.items():
        encoding = bones.encodings[place(bones, path, 0)[0]]
        assert encoding.scheme.is_quantized
        assert encoding.layout == (NATIVE if native else ROWS)
        for layer in range(LAYERS):
            expected = dense[f"model.layers.{layer}.{module}.weight"]
            actual = numbers_of(bones, arrays, path, layer)
            np.testing.assert_array_equal(actual, expected)
    for path, name in {"embedding": "model.embed_tokens", "unembedding": "lm_head"}.items():
        assert not bones.encodings[f"{path}.table"].scheme.is_quantized
        if not native:
            np.testing.assert_array_equal(arrays[f"{path}.table"], dense[f"{name}.weight"])


LOGITS = {  # of each kind of arithmetic, one
    "gptq_zeros_ordered_32": EXACT,
    "awq_128": EXACT,
    "int8_row": EXACT,
    "int8_tensor_dynamic": INT8,
    "float8_row": FLOAT8,
    "float8_blocks_deepseek": FLOAT8,
}
PACKED_LOGITS = {
    "packed_128": INT8,  # input of int4 is rounded
    "awq_128": INT8,
    "gptq_ordered_128": INT8,
    "int8_row_dynamic": INT8,
    "gptq_zeros_ordered_32": INT8,
    "awq_64": INT8,
    "float8_row": FLOAT8,
    "float8_blocks_deepseek": FLOAT8,
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_numbers(name, tmp_path):
    check_logits(name, tmp_path, None, LOGITS[name])


@pytest.mark.parametrize("name", PACKED_LOGITS)
def test_logits_of_packed_matrices_are_those_of_the_numbers(name, tmp_path):
    check_logits(name, tmp_path, native_level(), PACKED_LOGITS[name])


def check_logits(name: str, tmp_path: Path, native: str | None, tolerance: float) -> None:
    tensors, dense = written(name)
    results = []
    for part, source, config in (("plain", dense, None), (name, tensors, CASES[name].config)):
        level = None if part == "plain" else native
        bones, arrays = loaded(save(tmp_path / part, source, config), target_of("float32", level))
        results.append(np.asarray(compiled(part, "float32", level)(bones.leaves(arrays))))
    expected, actual = results
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference < tolerance
    if tolerance > EXACT:  # inputs were rounded
        assert difference > EXACT


def left_out(module: str) -> bool:
    return "o_proj" in module or module == "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("where", ["rows", "native"])
def test_modules_that_are_not_quantized_stay_as_they_are(where, tmp_path):
    native = native_level() if where == "native" else None
    case = CASES["packed_128"]
    tensors, dense = tensors_of(case, plain=left_out)
    ignored = {"ignore": ["lm_head", "model.layers.1.mlp.up_proj", "re:.*self_attn.o_proj$"]}
    folder = save(tmp_path / "quantized", tensors, case.config | ignored)
    bones, arrays = loaded(folder, target_of("bfloat16", native))
    twin, plain = loaded(save(tmp_path / "plain", dense, None), target_of("bfloat16", native))
    # Layers differ, so that each has arrays of its own.
    schemes = {path: encoding.scheme.name for path, encoding in bones.encodings.items()}
    assert schemes["layers.0.mlp.up.kernel"] == schemes["layers.1.mlp.gate.kernel"] == "int4"
    assert (
        schemes["layers.1.mlp.up.kernel"] == schemes["layers.0.attention.output.kernel"] == "plain"
    )

    actual = program(bones, "bfloat16")(bones.leaves(arrays))
    expected = program(twin, "bfloat16")(twin.leaves(plain))
    difference = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert difference < 0.1 * np.abs(np.asarray(expected)).max()  # bfloat16, and rounded input


def test_the_head_may_be_quantized(tmp_path):
    case = CASES["packed_128"]
    tensors, dense = written("packed_128")
    matrix = case.write(np.random.default_rng(5), CONFIG["vocab_size"], CONFIG["hidden_size"])
    tensors = {name: t for name, t in tensors.items() if not name.startswith("lm_head")}
    tensors |= {f"lm_head.{name}": tensor for name, tensor in matrix.tensors.items()}
    bones, arrays = loaded(
        save(tmp_path, tensors, case.config | {"ignore": []}), target_of("float32", None)
    )
    path = "unembedding.table"
    scales = np.asarray(arrays[path + SCALES])
    numbers = dequantize(np.asarray(arrays[path + VALUES]), scales, bones.encodings[path].scheme)
    np.testing.assert_array_equal(numbers, matrix.numbers)
    dense = dense | {"lm_head.weight": matrix.numbers}
    twin, plain = loaded(save(tmp_path / "plain", dense, None), target_of("float32", None))
    actual = program(bones, "float32")(bones.leaves(arrays))
    expected = compiled("plain", "float32", None)(twin.leaves(plain))
    atol = EXACT * np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
