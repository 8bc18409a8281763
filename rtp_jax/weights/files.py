"""Which files of a model folder may be read, and how the small ones are: bounded, and only JSON.

A model folder comes from somebody else.  A name in it leads nowhere outside of it, a pipe or a
device is not opened as a file, and text is parsed within stated limits.

Read next: `safetensors.py` for tensors, `locate.py` for where model folders are.
"""

import json
import os
import stat
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any

from rtp_jax.errors import CheckpointError

MAX_CONFIG_BYTES = 4 << 20  # the largest config.json in the wild has some 100 KB


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a small file that holds one JSON object."""
    return parse_object(read_small(path, max_bytes), str(path))


def read_small(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """Read a whole file of at most `max_bytes`."""
    with open_regular(path) as file:
        data = read_up_to(file, path, max_bytes + 1)
        size = max(len(data), os.fstat(file.fileno()).st_size)
    if len(data) > max_bytes:
        raise CheckpointError(
            f"RTPJ-3012 FILE_TOO_LARGE: {path} has {size} bytes, at most {max_bytes} are read. "
            "Replace it by the file that came with the model."
        )
    return data


def read_up_to(file: FileIO, path: Path, count: int) -> bytes:
    """Read `count` bytes, or fewer where the file ends."""
    data = bytearray()
    try:
        while len(data) < count and (more := file.read(count - len(data))):
            data += more
    except OSError as reason:
        raise unreadable(path, reason.strerror or str(reason)) from reason
    return bytes(data)


def open_regular(path: Path) -> FileIO:
    """Open an ordinary file, unbuffered; never wait for a pipe or a device."""
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - for the caller
    except FileNotFoundError:
        raise CheckpointError(
            f"RTPJ-3010 FILE_MISSING: {path} does not exist. Complete the download of the model."
        ) from None
    except OSError as reason:
        raise unreadable(path, reason.strerror or str(reason)) from reason
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise unreadable(path, "it is not an ordinary file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def unreadable(path: Path, reason: str) -> CheckpointError:
    """Say why a file cannot be read."""
    return CheckpointError(
        f"RTPJ-3011 FILE_UNREADABLE: {path} cannot be read: {reason}. "
        "Check its permissions and the disk, or download it again."
    )


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; names in it are unique."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as reason:
        raise _not_json(where, f"byte {reason.start} is not UTF-8") from None
    except json.JSONDecodeError as reason:
        end = " (where the file ends)" if reason.pos >= len(reason.doc.rstrip()) else ""
        raise _not_json(where, f"{reason.msg} at character {reason.pos}{end}") from None
    except ValueError as reason:  # a name given twice, or a number of thousands of digits
        raise _not_json(where, str(reason)) from None
    except RecursionError:
        raise _not_json(where, "it is nested too deeply") from None
    if not isinstance(value, dict):
        raise _not_json(where, f"it holds a {type(value).__name__} where an object belongs")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:200]!r} occurs twice")
        values[name] = value
    return values


def _not_json(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3013 JSON_INVALID: {where} is not a JSON object: {reason}. "
        "Replace it by the file that came with the model."
    )


def inside(folder: Path, name: str) -> Path:
    """Give the path of a file that a checkpoint names, and refuse one outside its folder.

    A snapshot in the Hugging Face cache links to `../../blobs`: that is inside, too, because it
    stays in the cache folder of the same model.
    """
    parts = PurePosixPath(name).parts
    if not name or not name.isprintable() or "\\" in name or name.startswith("/") or ".." in parts:
        raise _outside(folder, name, "it is not the name of a file in that folder")
    root = folder.resolve()
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError) as reason:  # a loop of links
        raise _outside(folder, name, f"it cannot be followed ({reason})") from None
    if not path.is_relative_to(_boundary(root)):
        raise _outside(folder, name, f"it is a link to {path}, outside of the folder")
    return folder / name


def _boundary(root: Path) -> Path:
    """The folder that links may not leave: `models--org--name` of a cache, or the folder."""
    in_cache = len(root.parents) > 1 and root.parents[0].name == "snapshots"
    return root.parents[1] if in_cache and root.parents[1].name.startswith("models--") else root


def _outside(folder: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3014 FILE_OUTSIDE: the checkpoint in {folder} names the file {name[:200]!r}: "
        f"{reason}. Put the file itself into the folder."
    )
