"""Which files travel with the tensors?  Tokenizer, config, licence: what a model needs to run.

They are copied byte by byte and never read as anything else; `config.json` is written anew where
its words must change.  Code and pickles stay behind, and are named.

Read next: `job.py`.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_tools import manifest
from checkpoints_tools.orbax_layout import COMMITTED
from checkpoints_tools.source import CONFIG
from checkpoints_tools.stored import Place
from checkpoints_tools.writers import OutputFile, Part
from rtp_jax.errors import CheckpointError
from rtp_jax.weights.files import inside, open_regular, read_up_to
from rtp_jax.weights.orbax import METADATA

SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".md", ".png")
NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
NOT_COMPANIONS = (manifest.NAME, METADATA, COMMITTED, CONFIG)
MAX_BYTES = 1 << 30
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def companions(folder: Path, *, leave: tuple[str, ...] = ()) -> tuple[list[OutputFile], list[str]]:
    """List the files to copy besides `config.json`, and the names of those that stay behind."""
    found, behind = [], []
    for name in sorted(os.listdir(folder)):
        if name in NOT_COMPANIONS or name in leave or os.path.isdir(folder / name):
            continue
        tensors = name.endswith((".safetensors", ".safetensors.index.json"))
        if tensors or name.startswith((".", "_")) or name == "commit_success.txt":
            continue
        if name.endswith(SUFFIXES) or name.split(".")[0] in NAMES:
            found.append(copied(folder, name))
        else:
            behind.append(name)
    return found, behind


def copied(folder: Path, name: str) -> OutputFile:
    """Describe the copy of a small file, and refuse one that is not what its name says."""
    path = inside(folder, name)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        beginning = read_up_to(file, path, 4)
    assert stat.S_ISREG(status.st_mode)
    if status.st_size > MAX_BYTES:
        raise _refused(path, f"it has {status.st_size} bytes, at most {MAX_BYTES} are copied")
    if beginning.startswith(PICKLES):
        raise _refused(path, "it is a pickle or a zip archive under another name")
    return OutputFile(name, (Part(status.st_size, Place(path, 0, status.st_size).read),))


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Say in a config that floats are of another dtype."""
    name = "dtype" if "dtype" in config else "torch_dtype"
    return {**config, name: dtype}


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3610 COMPANION_REFUSED: {path} would be copied along: {reason}. Replace it by the "
        "file that came with the model, or remove it."
    )
