"""Which text is rtp-tiny trained on?  The text that every Python installation brings along.

Three kinds of document: the topics of `help()`, the source of the standard library, and the
docstrings of built-in functions and C modules.  A document is held out as a whole, by a hash of
its name, so that a file is never seen in part.  `tasks.py` makes the other half of the data.
"""

import builtins
import hashlib
import importlib
import inspect
import json
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT_SHARE = 0.04
HELD_OUT_SAMPLE_BYTES = 65_536
HELD_OUT_FILE = Path(__file__).parent / "held_out.json"
# Tests, tables of character codes, generated code and vendored packages teach little.
SKIPPED_FOLDERS = {
    "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "ensurepip",
    "__pycache__", "lib-dynload", "__phello__",
}  # fmt: skip
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
C_MODULES = ("math", "itertools", "time", "zlib", "binascii", "_thread", "gc", "errno", "select")


def documents(*, held_out: bool) -> list[tuple[str, str]]:
    """Return (name, text) of one side of the split, ordered by name."""
    found = sorted([*_help_topics(), *_library_source(), *_builtin_docstrings()])
    return [(name, text) for name, text in found if is_held_out(name) == held_out]


def is_held_out(name: str) -> bool:
    """Decide by the name alone, so that the split is the same for every run."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def held_out_sample() -> list[str]:
    """Return the stored sample, so that figures of different machines compare."""
    return json.loads(HELD_OUT_FILE.read_text())


def write_held_out_sample() -> None:
    """Store at most 64 KiB of held-out text: the head of each document, at most its share."""
    texts = [text for _, text in documents(held_out=True)]
    budget = HELD_OUT_SAMPLE_BYTES // len(texts)
    sample = [text.encode()[:budget].decode(errors="ignore") for text in texts]
    HELD_OUT_FILE.write_text(json.dumps(sample, indent=0) + "\n")


def one_line_docstrings() -> list[tuple[str, str]]:
    """Return (qualified name, first sentence) of well-known built-ins, for the docstring task."""
    found = {}
    for owner in (builtins, str, list, dict, set, *map(importlib.import_module, C_MODULES[:3])):
        for name, value in sorted(vars(owner).items()):
            if name.startswith("_") or isinstance(value, type) or not callable(value):
                continue
            line = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
            if line.endswith(".") and 5 <= len(line.split()) <= 20 and "->" not in line:
                found[f"{owner.__name__}.{name}".removeprefix("builtins.")] = line
    return sorted(found.items())


def _help_topics() -> list[tuple[str, str]]:
    return [(f"topic:{name}", text) for name, text in topics.items()]


def _library_source() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or relative.name.startswith(SKIPPED_PREFIXES):
            continue
        found.append((f"source:{relative.as_posix()}", path.read_text(errors="ignore")))
    return found


def _builtin_docstrings() -> list[tuple[str, str]]:
    found = []
    for owner in (builtins, *map(importlib.import_module, C_MODULES)):
        for name, value in vars(owner).items():
            doc = inspect.getdoc(value) if callable(value) else None
            if doc and not name.startswith("_"):
                found.append((f"doc:{owner.__name__}.{name}", f"{name}\n\n{doc}\n"))
    return found
