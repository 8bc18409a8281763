"""Small models for loads by several processes: plain, encoded, and stored as several tensors.

Those of `LAYOUTS` are laid out as others do it (`tests/golden/quantized_layouts.py`).
"""

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.runner.encoders import encoders
from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.loader import load
from rtp_jax.weights.table import Weight, WeightTable, in_each_layer
from tests.golden.quantized_layouts import CASES, tensors_of, with_quantization
from tests.weights.written import encoded, expected, parameters, quantizers, save, table, tensors

LAYERS, ROWS, COLUMNS = 5, 24, 48
LAYOUTS = ("gptq_zeros_ordered_32", "awq_64", "packed_zeros_128", "float8_blocks_deepseek")


class Model(NamedTuple):
    """What is stored, how it is loaded, and what must come of it."""

    source: Mapping[str, np.ndarray]
    table: WeightTable
    parameters: Mapping[str, Any]
    encoders: Mapping[str, Encoder]
    wanted: Mapping[str, np.ndarray]


def plain() -> Model:
    """Tensors that become parameters as they are."""
    source = tensors()
    return Model(source, table(), parameters(), {}, expected(source, np.float32))


def quantized() -> Model:
    """Some parameters are encoded, each from one tensor."""
    model = plain()
    encoders = quantizers(model.parameters)
    return model._replace(encoders=encoders, wanted=encoded(model.wanted, encoders))


def gathered() -> Model:
    """Matrices that are stored as values, scales and zeros: two in each layer, and a plain bias."""
    random = np.random.default_rng(0)
    source, parts = {}, {"values": (ROWS, COLUMNS), "scales": (ROWS, 1), "zeros": (ROWS, 1)}
    rows = [Weight("bias", "bias")]
    described = {"layers.bias": jax.ShapeDtypeStruct((LAYERS, ROWS), np.float32)}
    for matrix in "ab":
        rows += [Weight(f"{matrix}.{part}", f"{matrix}.{part}") for part in parts]
        described |= {
            f"layers.{matrix}.{part}": jax.ShapeDtypeStruct((LAYERS, *shape), np.float32)
            for part, shape in parts.items()
        }
    for layer in range(LAYERS):
        source[f"layers.{layer}.bias"] = random.standard_normal(ROWS, np.float32)
        source |= {
            f"layers.{layer}.{matrix}.{part}": random.standard_normal(shape, np.float32)
            for matrix in "ab"
            for part, shape in parts.items()
        }
    stack = {
        path: np.stack([source[path.replace("layers", f"layers.{i}")] for i in range(LAYERS)])
        for path in described
    }
    encoders, wanted = {}, {"layers.bias": stack["layers.bias"]}
    for path in ("layers.a", "layers.b"):
        encoders |= dict.fromkeys([f"{path}.{part}" for part in parts], _decoder(path, list(parts)))
        values, scales, zeros = (stack[f"{path}.{part}"] for part in parts)
        wanted[f"{path}.numbers"] = values * scales + zeros
        wanted[f"{path}.sums"] = values.sum(-1, keepdims=True, dtype=np.float32)
    weights = WeightTable(in_each_layer("layers.{i}", "layers.{i}", rows, LAYERS))
    return Model(source, weights, described, encoders, wanted)


def _decoder(path: str, parts: list[str]) -> Encoder:
    def encode(stored: Mapping[str, np.ndarray], into: Mapping[str, np.ndarray]) -> None:
        into[f"{path}.numbers"][:] = stored["values"] * stored["scales"] + stored["zeros"]
        into[f"{path}.sums"][:] = stored["values"].sum(-1, keepdims=True, dtype=np.float32)

    held = {
        f"{path}.numbers": jax.ShapeDtypeStruct((LAYERS, ROWS, COLUMNS), np.float32),
        f"{path}.sums": jax.ShapeDtypeStruct((LAYERS, ROWS, 1), np.float32),
    }
    return Encoder({f"{path}.{part}": part for part in parts}, held, encode)


@functools.cache
def of_layout(name: str) -> Model:
    """Load a checkpoint that comes quantized on one device, to compare other loads with.

    That this is right to the bit is in `tests/models/test_quantized_checkpoints.py`.
    """
    source, _ = tensors_of(CASES[name])
    spec = read_spec(with_quantization(CASES[name].config))
    bones = skeleton(spec, Target("cpu", np.dtype(np.float32)))
    rows = architecture(spec.architecture).weight_table(spec)
    model = Model(source, rows, bones.stored, encoders(bones), {})
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), source)
        loaded = load(Path(folder), rows, bones.stored, encoders=model.encoders)
    # Sorted, because they are complete in an order of chance, and all processes go by theirs.
    return model._replace(wanted={path: np.asarray(loaded[path]) for path in sorted(loaded)})


MODELS: dict[str, Callable[[], Model]] = {
    "plain": plain,
    "quantized": quantized,
    "gathered": gathered,
    **{name: functools.partial(of_layout, name) for name in LAYOUTS},
}
