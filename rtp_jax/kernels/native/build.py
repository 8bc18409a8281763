"""Builds the C++ kernels with the system's compiler, once for each machine that needs them.

A library is kept in the user's cache under a name made of everything that shapes it: the sources,
the flags, the compiler, the jaxlib whose headers it includes.  Engines that start at the same
time may both build; the last rename wins and the files are equal.  The time of a file says when it
was last used: whoever builds removes what nobody has used for a month.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import jax

from rtp_jax.kernels.native.levels import Level

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
)
BUILD_TIMEOUT_S = 300
UNUSED_S = 30 * 24 * 3600  # after which a library is removed


class BuildError(Exception):
    """The library cannot be built here; the message says why, for `obstacle`."""


def build(
    level: Level,
    folder: Path,
    *,
    extra_flags: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Give the library of a level, from `folder` if it is there, else compiled into it.

    Args:
      level: which instructions it may use.
      folder: where libraries are kept; made private if it is not there.
      extra_flags: for compiler and linker, such as sanitizers; part of the library's name.
      report: told when something is compiled, because that takes seconds.

    Raises:
      BuildError: there is no compiler, or it refuses.
    """
    compiler = _compiler()
    flags = (*FLAGS, *level.flags, *extra_flags)
    library = folder / f"native-{level.name}-{_key(compiler, flags)}.so"
    if _is_used(library):
        return library
    report(f"compiling the native kernels for {level.name}, once for this machine")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
        sources = sorted(SOURCES.glob("*.cc"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(lambda source: _compile(compiler, flags, source, Path(scratch)), sources)
            )
        linked = Path(scratch) / "linked.so"
        _run([compiler, "-shared", *flags, *map(str, objects), "-o", str(linked)])
        os.replace(linked, library)
    _remove_unused(folder, level)
    return library


def _is_used(library: Path) -> bool:
    """Whether a library is there; if so, it counts as used now."""
    try:
        os.utime(library)
    except FileNotFoundError:
        return False
    except OSError:  # it is not ours to change, so it is not ours to remove either
        return library.exists()
    return True


def _remove_unused(folder: Path, level: Level) -> None:
    """Remove libraries of a level that were last used long ago; processes that have one keep it."""
    for library in folder.glob(f"native-{level.name}-*.so"):
        with contextlib.suppress(OSError):  # another process may remove it as well
            if library.stat().st_mtime < time.time() - UNUSED_S:
                library.unlink()


def source_hash() -> str:
    """Hash the C++ sources: what a compiled program relies on besides jax."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _compiler() -> str:
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"no C++ compiler is installed (looked for {', '.join(COMPILERS)})")
    return found


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    version = _run([compiler, "--version"]).splitlines()[0]
    parts = (source_hash(), compiler, version, *flags, metadata.version("jaxlib"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], source: Path, scratch: Path) -> Path:
    target = scratch / f"{source.stem}.o"
    headers = ("-I", jax.ffi.include_dir(), "-I", str(SOURCES))
    _run([compiler, *flags, *headers, "-c", str(source), "-o", str(target)])
    return target


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise BuildError(f"{Path(command[0]).name} refused the native kernels: {first[:300]}")
    return done.stdout
