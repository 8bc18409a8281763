"""Checkpoints of real shapes with numbers that mean nothing, for what only moves bytes.

    python -m bench.synthetic FOLDER dense moe

Writes FOLDER/dense (1.2 GB, one file), FOLDER/moe (2.0 GB, 64 experts, four files with all tensors
shuffled) or FOLDER/large (8.0 GB, three files), in bfloat16.  One that is there already is kept.
"""

import argparse
import json
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.weights.table import Weight, WeightTable, in_each_layer

PATTERN = 1 << 26  # numbers repeat after so many bytes
MESH_AXIS = "tensor"


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a model's weights look like."""

    layers: int
    hidden: int
    mlp: int  # of each expert, if there are experts
    queries: int
    kv: int
    vocab: int = 151936
    experts: int = 0
    files: int = 1
    dtype: str = "BF16"

    def matrices(self) -> dict[str, tuple[int, int, int | None]]:
        """Give outer, inner and the axis that is split of each kind of matrix, by its path."""
        mlp = "mlp.experts.{e}" if self.experts else "mlp"
        split = (None, None, None) if self.experts else (0, 0, 1)
        return {
            "attention.q": (self.queries, self.hidden, 0),
            "attention.k": (self.kv, self.hidden, 0),
            "attention.v": (self.kv, self.hidden, 0),
            "attention.o": (self.hidden, self.queries, 1),
            f"{mlp}.gate": (self.mlp, self.hidden, split[0]),
            f"{mlp}.up": (self.mlp, self.hidden, split[1]),
            f"{mlp}.down": (self.hidden, self.mlp, split[2]),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor, in the order of the model's structure."""
        found: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            found[f"layers.{layer}.norm"] = (self.hidden,)
            for path, (outer, inner, _) in self.matrices().items():
                for expert in range(self.experts if "{e}" in path else 1):
                    name = path.replace("{e}", str(expert))
                    found[f"layers.{layer}.{name}"] = (outer, inner)
        return found

    def table(self) -> WeightTable:
        """Say which tensor becomes which parameter: all layers of a kind are one."""
        rows = [Weight("norm", "norm")]
        for path in self.matrices():
            paths = [
                path.replace("{e}", str(e)) for e in range(self.experts if "{e}" in path else 1)
            ]
            rows += [Weight(each, each) for each in paths]
        stacked = in_each_layer("layers.{i}", "layers.{i}", rows, self.layers)
        return WeightTable([Weight("embed", "embed"), *stacked])

    def parameters(self, dtype=jnp.bfloat16) -> dict[str, jax.ShapeDtypeStruct]:
        """Give the shape of each parameter."""
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        shapes["layers.norm"] = (self.layers, self.hidden)
        for path, (outer, inner, _) in self.matrices().items():
            stack = (self.layers, self.experts) if "{e}" in path else (self.layers,)
            shapes[f"layers.{path.replace('.{e}', '')}"] = (*stack, outer, inner)
        return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}

    def splits(self) -> dict[str, tuple[str | None, ...]]:
        """Say which axis of each parameter is spread over the mesh: heads, widths, experts."""
        found: dict[str, tuple[str | None, ...]] = {"embed": (MESH_AXIS,)}
        for path, (_, _, axis) in self.matrices().items():
            stack = (None, MESH_AXIS) if "{e}" in path else (None,)
            matrix = [MESH_AXIS if i == axis else None for i in range(2)]
            found[f"layers.{path.replace('.{e}', '')}"] = (*stack, *matrix)
        return found


KINDS = {
    "dense": Shapes(layers=28, hidden=1024, mlp=3072, queries=2048, kv=1024),
    "moe": Shapes(layers=8, hidden=1024, mlp=512, queries=2048, kv=512, experts=64, files=4),
    "large": Shapes(layers=36, hidden=2560, mlp=9728, queries=4096, kv=1024, files=3),
}


def write(folder: Path, shapes: Shapes, seed: int = 0) -> None:
    """Write a checkpoint; of several files, each has tensors from everywhere, in random order."""
    folder.mkdir(parents=True)
    names, chance = list(shapes.tensors()), random.Random(seed)
    if shapes.files == 1:
        return _write_file(folder / "model.safetensors", shapes, sorted(names))
    chance.shuffle(names)
    file_of = {
        name: f"model-{1 + i % shapes.files:05}-of-{shapes.files:05}.safetensors"
        for i, name in enumerate(names)
    }
    for file in sorted(set(file_of.values())):
        _write_file(folder / file, shapes, [name for name in names if file_of[name] == file])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def _write_file(path: Path, shapes: Shapes, names: list[str]) -> None:
    every, header, begin = shapes.tensors(), {}, 0
    itemsize = {"BF16": 2, "F32": 4}[shapes.dtype]
    for name in names:
        end = begin + math.prod(every[name]) * itemsize
        entry = {"dtype": shapes.dtype, "shape": every[name], "data_offsets": [begin, end]}
        header[name], begin = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in _numbers(begin, len(names)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _numbers(count: int, seed: int) -> Iterator[memoryview]:
    """Give bytes that are finite numbers around 0.01 in bfloat16, and in float32 as well."""
    size = min(PATTERN, count) // 4 + 1
    numbers = np.random.default_rng(seed).standard_normal(size, np.float32) * 0.02
    pattern = numbers.astype(jnp.bfloat16).view(np.uint16)
    pattern = np.stack([pattern, pattern[::-1]], -1).reshape(-1).view(np.uint8)
    while count:
        yield pattern[:count].data
        count -= min(count, pattern.nbytes)


def main(options: argparse.Namespace) -> None:
    """Write what is not there yet."""
    for kind in options.kinds:
        if not (options.folder / kind).exists():
            write(options.folder / kind, KINDS[kind])
        size = sum(file.stat().st_size for file in (options.folder / kind).glob("*.safetensors"))
        print(f"{options.folder / kind}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    main(parser.parse_args())
