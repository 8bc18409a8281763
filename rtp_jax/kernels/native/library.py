"""The native kernels that this process has loaded, and how jax calls them.

XLA knows custom calls by name for the whole process, so this is process state by nature: what is
loaded stays loaded.  Names carry the level, so several levels can be compared in one process.

Read next: `build.py` for where libraries come from, `matmul.h` and `attention.h` for what they do.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from rtp_jax.kernels.native.build import BuildError, build
from rtp_jax.kernels.native.handlers import HANDLERS
from rtp_jax.kernels.native.levels import LEVELS, NAMES, Level, levels_of_this_cpu


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library: its level, and its plain C functions."""

    level: str
    functions: ctypes.CDLL

    def target(self, name: str) -> str:
        """Name the custom call of a handler in this library."""
        return f"{name}_{self.level}"


_loaded: dict[str, Library] = {}
_current: str | None = None  # the level that was asked for last, and is there
_missing = "the native kernels were not loaded"


def load(
    folder: Path,
    *,
    level: str = "auto",
    report: Callable[[str], None] = lambda _: None,
) -> str | None:
    """Build and load the best level this processor runs, or the one named; idempotent.

    From now on it is what programs are built with.

    Returns:
      None if it is loaded, else why not, in words for an `obstacle`.
    """
    global _current, _missing
    names = [one.name for one in levels_of_this_cpu()]
    if level not in ("auto", *NAMES):
        reason = f"there is no level {level!r}, only {', '.join(NAMES)}"
    elif level != "auto" and level not in names:
        reason = f"this processor does not run {level}, only {', '.join(names)}"
    else:
        reason = None
        for name in names if level == "auto" else [level]:
            reason = _load(name, folder, report)
            if reason is None:
                _current = name
                return None
    _missing = reason or _missing
    return _missing


def loaded(level: str | None = None) -> Library | None:
    """Give the library of a level, or the one that programs are built with now."""
    name = _current if level is None else level
    return None if name is None else _loaded.get(name)


def obstacle() -> str | None:
    """Say in words why no native kernel can run, or return None if some can."""
    return None if _loaded else _missing


def _load(name: str, folder: Path, report: Callable[[str], None]) -> str | None:
    if name in _loaded:
        return None
    level = next(one for one in LEVELS if one.name == name)
    try:
        functions = _opened(level, folder, report)
    except (BuildError, OSError) as error:
        return str(error)
    if functions.rtp_prepare():  # asks the kernel for the tile registers
        return f"the operating system does not grant the registers of {name}"
    library = Library(name, functions)
    for handler in HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(functions, handler))
        jax.ffi.register_ffi_target(library.target(handler), capsule, platform="cpu")
    _loaded[name] = library
    return None


def _opened(level: Level, folder: Path, report: Callable[[str], None]) -> ctypes.CDLL:
    """Open a library, built anew if another process removed it as unused a moment ago."""
    while True:
        library = build(level, folder, report=report)
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            if library.exists():
                raise
