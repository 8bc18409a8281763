"""Where is the model of this name?  A folder, the built-in model, or a download in the cache.

Nothing is downloaded here: a model that is not on this machine is an error which says how to get
it.

Read next: `checkpoint.py` for what is in such a folder.
"""

import os
import re
from pathlib import Path

from rtp_jax.errors import CheckpointError, InvalidArgument, NotFound
from rtp_jax.weights.checkpoint import has_tensors
from rtp_jax.weights.files import inside, read_small, unreadable
from rtp_jax.weights.orbax import is_orbax

BUILT_IN = {"rtp-tiny": Path(__file__).parents[1] / "assets" / "rtp-tiny"}

MAX_NAME = 1024
HUB_ID = re.compile(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")


def find_model(name: str, *, hub_cache: Path) -> Path:
    """Find the folder of a model: a path, a built-in model, or an id `org/name` in the cache."""
    _check_name(name)
    if name in BUILT_IN:
        return _checked(BUILT_IN[name])
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return _checked(path)
    if os.path.isfile(path):
        raise InvalidArgument(
            f"RTPJ-3032 MODEL_IS_A_FILE: the model {name} is a file. Give the folder that holds "
            f"config.json and safetensors, for example {path.parent}."
        )
    looked_at = [f"the folder {path.absolute()}"]
    if HUB_ID.fullmatch(name):
        repository = hub_cache / f"models--{name.replace('/', '--')}"
        looked_at.append(f"the cache {repository}")
        if snapshot := _snapshot(repository):
            return _checked(snapshot)
    raise _not_found(name, looked_at)


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidArgument(
            f"RTPJ-3030 MODEL_NAME_INVALID: the model {name[:100]!r} has {len(name)} characters; "
            f"a name has 1 to {MAX_NAME} printable ones. Give a folder or an id org/name."
        )
    if ".." in Path(name).parts:
        raise InvalidArgument(
            f"RTPJ-3030 MODEL_NAME_INVALID: the model {name} climbs out of a folder with '..'. "
            f"Write {Path(name).resolve()}."
        )


def _snapshot(repository: Path) -> Path | None:
    """Give the newest downloaded revision of a repository in the cache, if there is one."""
    main = repository / "refs" / "main"
    if main.is_file():
        revision = read_small(main, 100).decode("ascii", "replace").strip()
        snapshot = repository / "snapshots" / revision
        if REVISION.fullmatch(revision) and snapshot.is_dir():
            return snapshot
    snapshots = [path for path in repository.glob("snapshots/*") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _not_found(name: str, looked_at: list[str]) -> NotFound:
    download = "Give an existing folder, an id org/name, or a built-in model"
    if HUB_ID.fullmatch(name) and "/" in name:
        download = f"Download it with `hf download {name}` (or `huggingface-cli download {name}`)"
    return NotFound(
        f"RTPJ-3031 MODEL_NOT_FOUND: the model {name} is not on this machine; looked at "
        f"{' and '.join(looked_at)}. {download}. Built in: {', '.join(BUILT_IN)}."
    )


def _checked(folder: Path) -> Path:
    """Refuse a folder that cannot be loaded, before anything else starts."""
    has = {
        "config.json": os.path.isfile(folder / "config.json"),
        "model.safetensors (or its .index.json)": has_tensors(folder) or is_orbax(folder),
    }
    if all(has.values()):
        inside(folder, "config.json")
        return folder
    try:
        names = sorted(os.listdir(folder))
    except OSError as reason:
        raise unreadable(folder, reason.strerror or str(reason)) from reason
    others = [name for name in names if name.endswith(OTHER_FORMATS)]
    if others and not has_tensors(folder):
        raise CheckpointError(
            f"RTPJ-3033 FORMAT_UNSUPPORTED: {folder} holds {others[0]!r} and no safetensors. "
            "Convert the model to safetensors, or download a repository that has them."
        )
    lacks = " and ".join(what for what, there in has.items() if not there)
    raise CheckpointError(
        f"RTPJ-3034 MODEL_INCOMPLETE: {folder} lacks {lacks}. Complete the download of the model, "
        "or give the folder that holds these files."
    )
