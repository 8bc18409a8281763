"""Checkpoints that tests write: by the format's own library, or by hand where it would refuse."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rtp_jax.quant.schemes import SCHEMES, quantize
from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.reader import Reading
from rtp_jax.weights.table import Weight, WeightTable, in_each_layer, split_heads, transposed

HIDDEN, HEADS, VOCAB, LAYERS = 24, 3, 40, 4
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def table() -> WeightTable:
    """A small model: ends, a transposed kernel, heads, a bias, experts inside of layers."""
    expert = in_each_layer("experts.{i}", "experts.{i}", [Weight("up.weight", "up.kernel")], 2)
    layer = [
        Weight("norm.weight", "norm.scale"),
        Weight("q.weight", "attention.query.kernel", split_heads(HEADS)),
        Weight("q.bias", "attention.query.bias", split_heads(HEADS)),
        Weight("mlp.weight", "mlp.kernel", transposed),
        *expert,
    ]
    ends = [Weight("embed.weight", "embedding.table"), Weight("norm.weight", "final_norm.scale")]
    rows = [*ends, *in_each_layer("model.layers.{i}", "layers.{i}", layer, LAYERS)]
    return WeightTable(rows, ignored=("*.inv_freq",))


def tensors(dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Give each tensor of the small model its numbers."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (VOCAB, HIDDEN), "norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.norm.weight": (HIDDEN,),
            f"{layer}.q.weight": (HIDDEN, HIDDEN),
            f"{layer}.q.bias": (HIDDEN,),
            f"{layer}.mlp.weight": (2 * HIDDEN, HIDDEN),
            f"{layer}.experts.0.up.weight": (5, HIDDEN),
            f"{layer}.experts.1.up.weight": (5, HIDDEN),
            f"{layer}.inv_freq": (4,),
        }
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(s).astype(dtype) for name, s in shapes.items()}


def parameters(dtype: Any = np.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Give shape and dtype of each parameter of the small model."""
    shapes = {
        "embedding.table": (VOCAB, HIDDEN),
        "final_norm.scale": (HIDDEN,),
        "layers.norm.scale": (LAYERS, HIDDEN),
        "layers.attention.query.kernel": (LAYERS, HEADS, HIDDEN // HEADS, HIDDEN),
        "layers.attention.query.bias": (LAYERS, HEADS, HIDDEN // HEADS),
        "layers.mlp.kernel": (LAYERS, HIDDEN, 2 * HIDDEN),
        "layers.experts.up.kernel": (LAYERS, 2, 5, HIDDEN),
    }
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}


def expected(source: Mapping[str, np.ndarray], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Say what the parameters must be, without the code under test."""

    def stack(name: str) -> np.ndarray:
        return np.stack([source[f"model.layers.{i}.{name}"] for i in range(LAYERS)])

    heads = (LAYERS, HEADS, HIDDEN // HEADS)
    experts = np.stack([stack("experts.0.up.weight"), stack("experts.1.up.weight")], axis=1)
    values = {
        "embedding.table": source["embed.weight"],
        "final_norm.scale": source["norm.weight"],
        "layers.norm.scale": stack("norm.weight"),
        "layers.attention.query.kernel": stack("q.weight").reshape(*heads, HIDDEN),
        "layers.attention.query.bias": stack("q.bias").reshape(heads),
        "layers.mlp.kernel": stack("mlp.weight").transpose(0, 2, 1),
        "layers.experts.up.kernel": experts,
    }
    return {path: value.astype(dtype) for path, value in values.items()}


def save(folder: Path, source: Mapping[str, np.ndarray], num_files: int = 1, seed: int = 0) -> None:
    """Write a checkpoint with the format's own library, its tensors dealt out at random."""
    if num_files == 1:
        return save_file(dict(source), folder / "model.safetensors")
    names = list(np.random.default_rng(seed).permutation(list(source)))
    files = {str(name): f"model-{i % num_files}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: source[n] for n in files if files[n] == file}, folder / file)
    write_index(folder, files)
    return None


def write_index(folder: Path, file_of: Any) -> None:
    """Write the index of a checkpoint."""
    index = {"metadata": {"total_size": 0}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def raw(header: Any, data: bytes = b"") -> bytes:
    """Write a safetensors file by hand; `header` is JSON text or what becomes it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def shuffled(source: Mapping[str, np.ndarray], seed: int) -> bytes:
    """Write a file whose tensors lie in random order, not sorted as the library does it."""
    order = np.random.default_rng(seed).permutation(list(source))
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    header, data = {}, b""
    for name in map(str, order):
        array = source[name]
        more = array.tobytes()
        header[name] = {
            "dtype": kinds.get(array.dtype, "BF16"),
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(more)],
        }
        data += more
    names = list(np.random.default_rng(seed + 1).permutation(order))
    return raw({str(name): header[str(name)] for name in names}, data)


def quantizers(described: Mapping[str, Any]) -> dict[str, Encoder]:
    """Give encoders to int8 to some parameters: one encodes rows by themselves, one all at once."""

    def encoder(path: str, block_rows: int | None) -> Encoder:
        shape = described[path].shape
        held = {
            f"{path}.values": jax.ShapeDtypeStruct(shape, np.int8),
            f"{path}.scales": jax.ShapeDtypeStruct((*shape[:-1], 1), np.float32),
        }

        def encode(parts: Mapping[str, np.ndarray], into: Mapping[str, np.ndarray]) -> None:
            values, scales = quantize(parts["numbers"], SCHEMES["int8"])
            into[f"{path}.values"][:], into[f"{path}.scales"][:] = values, scales

        return Encoder({path: "numbers"}, held, encode, block_rows)

    paths = {"embedding.table": 4, "layers.experts.up.kernel": 1, "layers.mlp.kernel": None}
    return {path: encoder(path, block_rows) for path, block_rows in paths.items()}


def encoded(
    numbers: Mapping[str, np.ndarray], encoders: Mapping[str, Encoder]
) -> dict[str, np.ndarray]:
    """Encode whole parameters, as the loader must have done part by part."""
    found = {path: array for path, array in numbers.items() if path not in encoders}
    for path in encoders:
        values, scales = quantize(
            numbers[path].reshape(-1, numbers[path].shape[-1]), SCHEMES["int8"]
        )
        found[f"{path}.values"] = values.reshape(numbers[path].shape)
        found[f"{path}.scales"] = scales.reshape(*numbers[path].shape[:-1], 1)
    return found


def random_split(shape: tuple[int, ...], mesh: Mapping[str, int], seed: int) -> list[str | None]:
    """Spread an array over mesh axes, each over an axis of its own that divides, or over none."""
    random = np.random.default_rng(seed)
    split: list[str | None] = [None] * len(shape)
    for name, size in mesh.items():
        axes = [i for i, n in enumerate(shape) if n % size == 0 and split[i] is None]
        if axes and random.random() < 0.9:
            split[int(random.choice(axes))] = name
    return split


def counted(reading: Reading) -> tuple[Reading, list[int]]:
    """Count the bytes that the system says it has read."""
    counts: list[int] = []

    def read(descriptor: int, pieces: Any, offset: int) -> int:
        counts.append(os.preadv(descriptor, pieces, offset))
        return counts[-1]

    return replace(reading, read=read), counts
