"""What is in an Orbax checkpoint?  A tree of arrays; a tensor's name is its path, joined by dots.

Orbax stores each array as a Zarr array, either in a folder of its own or, as it does by default,
inside of one key-value store (OCDBT) for all of them:

    _METADATA             JSON: path of each array in the tree, and what kind of value it is
    <name>/.zarray, 0.0   Zarr 2: description and chunks;  <name>/zarr.json, c/0/0  in Zarr 3
    manifest.ocdbt, d/    all arrays in one key-value store

An array that is one uncompressed file is plain, and read from there like a tensor of safetensors:
that is what `rtp-jax-ckpt` writes and the engine loads.  Any other is for `checkpoints_tools`.

Source: the files that orbax-checkpoint 0.12.8 writes, and the Zarr 2 specification.
Read next: `checkpoint.py`.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import inside, open_regular, parse_object, read_json, read_small
from rtp_jax.weights.safetensors import (
    DTYPES,
    MAX_AXES,
    MAX_HEADER_BYTES,
    MAX_NAME,
    Header,
    Tensor,
    identity,
)

METADATA, STORE = "_METADATA", "manifest.ocdbt"
ARRAYS = ("jax.Array", "np.ndarray", "scalar")  # kinds of values that are arrays
MAX_SIZE = 1 << 48  # numbers of a tensor
EXTENDED = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
)  # have names in Zarr 2, as TensorStore has it
ZARR_DTYPES = {
    dtype: dtype.name if dtype.name in EXTENDED else dtype.str for dtype in DTYPES.values()
}
DTYPE_OF = {text: dtype for dtype, text in ZARR_DTYPES.items()}


def is_orbax(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that Orbax wrote."""
    return os.path.isfile(folder / METADATA)


def read_tree(folder: Path) -> tuple[dict[str, str], str]:
    """Give the name and kind of each value, and the driver of the arrays: zarr or zarr3."""
    content = read_json(inside(folder, METADATA), MAX_HEADER_BYTES)
    tree = content.get("tree_metadata")
    if not isinstance(tree, dict):
        raise invalid(folder, f"{METADATA} has no tree_metadata")
    kinds = dict(_leaf(folder, entry) for entry in tree.values())
    if len(kinds) != len(tree):
        raise invalid(folder, "two arrays have one name")
    return kinds, "zarr3" if content.get("use_zarr3") is True else "zarr"


def _leaf(folder: Path, entry: Any) -> tuple[str, str]:
    """Give name and kind of one entry of the tree."""
    match entry:
        case {"key_metadata": list(keys), "value_metadata": {"value_type": str(kind)}}:
            parts = [str(key["key"]) for key in keys if isinstance(key, dict) and "key" in key]
        case _:
            raise invalid(folder, "an entry of its tree lacks key_metadata or value_metadata")
    name = ".".join(parts)
    if len(parts) != len(keys) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise invalid(folder, f"an array is named {name[:200]!r}")
    if "/" in name or "\\" in name or name.startswith("."):
        raise invalid(folder, f"an array is named {name[:200]!r}, which is no name of a folder")
    return name, kind


def read_plain(folder: Path) -> tuple[Header, ...]:
    """Describe all arrays of a checkpoint, each as a file of one tensor."""
    kinds, driver = read_tree(folder)
    if driver != "zarr" or os.path.lexists(folder / STORE):
        raise _not_plain(folder, "its arrays are in a key-value store, or in Zarr 3")
    headers = []
    for name in (name for name, kind in kinds.items() if kind in ARRAYS):
        header = plain_header(folder, name)
        if header is None:
            raise _not_plain(folder, f"{name} is compressed, or in several chunks")
        headers.append(header)
    return tuple(headers)


def plain_header(folder: Path, name: str) -> Header | None:
    """Describe an array that is one uncompressed file; None if it is stored in another way."""
    path = inside(folder, f"{name}/.zarray")
    if not os.path.isfile(path):
        raise invalid(folder, f"{name} has no {path.name}")
    text = read_small(path)
    found = parse_object(text, str(path))
    shape, dtype = found.get("shape"), found.get("dtype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        return None
    plain = found.get("compressor", 0) is None and not found.get("filters")
    plain = plain and found.get("zarr_format") == 2 and found.get("order") == "C"
    if not plain or shape != found.get("chunks") or not isinstance(dtype, str):
        return None
    if dtype not in DTYPE_OF:
        return None
    check(folder, name, DTYPE_OF[dtype], tuple(shape))
    needed = math.prod(shape) * DTYPE_OF[dtype].itemsize
    chunk = inside(folder, f"{name}/{chunk_name(tuple(shape))}")
    if not os.path.isfile(chunk) or os.path.getsize(chunk) != needed:
        has = f"{os.path.getsize(chunk)} bytes" if os.path.isfile(chunk) else "no such file"
        raise invalid(folder, f"{name}/{chunk.name} needs {needed} bytes, there is {has}")
    with open_regular(chunk) as file:
        found_identity = identity(file)
    digest = hashlib.blake2b(json.dumps([name, text.decode()]).encode(), digest_size=32).digest()
    tensor = Tensor(name, DTYPE_OF[dtype], tuple(shape), 0, needed)
    return Header(chunk, (tensor,), 0, found_identity, digest)


def chunk_name(shape: tuple[int, ...]) -> str:
    """Name the only chunk of an array."""
    return ".".join("0" for _ in shape) or "0"


def check(folder: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Refuse an array that no file of safetensors could hold."""
    if dtype not in DTYPES.values():
        raise invalid(folder, f"{name} has dtype {dtype}, which safetensors does not have")
    if len(shape) > MAX_AXES or math.prod(shape) > MAX_SIZE:
        raise invalid(folder, f"{name} has shape {str(list(shape))[:200]}")


def invalid(folder: Path, reason: str) -> CheckpointError:
    """Say what is wrong with an Orbax checkpoint."""
    return CheckpointError(
        f"RTPJ-3608 ORBAX_INVALID: {folder}: {reason}. Copy the checkpoint again, or give the "
        f"folder that holds {METADATA}."
    )


def _not_plain(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3035 ORBAX_NOT_PLAIN: {folder}: {reason}; the engine loads arrays that are one "
        f"uncompressed file each. Convert it: rtp-jax-ckpt convert {folder} DST --to orbax."
    )
