"""Checkpoints for the tests of the command line, and ways to run it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

from checkpoints_tools.main import main
from tests.tiny_model import CONFIG, weights

NAMES = {"F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U8": "u1", "I8": "i1", "BOOL": "?"}
NAMES |= {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
DTYPES = {
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "i64": np.int64,
    "u8": np.uint8,
    "bool": np.bool_,
    "fp8": ml_dtypes.float8_e4m3fn,
}


def every_dtype(seed: int = 0) -> dict[str, np.ndarray]:
    """A tensor of each dtype, with several numbers of axes, one of them a single number."""
    random = np.random.default_rng(seed)
    shapes = [(), (7,), (3, 5), (2, 3, 4), (33, 17), (64,), (5, 1)]
    return {
        f"model.{name}.weight": random.standard_normal(shape).astype(dtype)
        for (name, dtype), shape in zip(DTYPES.items(), shapes, strict=True)
    }


def save(folder: Path, tensors: dict[str, np.ndarray], num_files: int = 1) -> Path:
    """Write a checkpoint in safetensors with companions of several kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(name) for name in np.random.default_rng(1).permutation(list(tensors))]
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        files = {name: f"part-{i % num_files}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({n: tensors[n] for n in files if files[n] == file}, folder / file)
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"architectures":["X"],  "torch_dtype": "float32"}')
    (folder / "tokenizer.json").write_bytes(b'{"a":  1}\n')
    (folder / "LICENSE").write_text("as you like")
    return folder


def tiny(folder: Path, dtype: Any = np.float32, seed: int = 0, **config: Any) -> Path:
    """Write the weights of the tiny model, in some dtype, and its config."""
    random = np.random.default_rng(seed)
    tensors = {name: array.astype(dtype) for name, array in weights(random).items()}
    save(folder, tensors)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint with the format's own library."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    found = {}
    for file in files:  # not `load_file`, which knows no float8
        for name, entry in deserialize((folder / file).read_bytes()):
            kind = NAMES[entry["dtype"]]
            found[name] = np.frombuffer(entry["data"], kind).reshape(entry["shape"])
    return found


def tree(folder: Path) -> dict[str, str]:
    """Hash every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare names, dtypes, shapes and every byte."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def run(*arguments: object) -> int:
    """Run the command line in this process."""
    return main([str(argument) for argument in arguments])
