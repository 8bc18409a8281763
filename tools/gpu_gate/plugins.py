"""Where does the compiler for the GPU come from, on a machine without one?

From three wheels: jax's CUDA plugin and runtime, of the version of the installed jax, and ptxas.
They are unpacked into a folder of the user's cache, in no environment: some 140 MB to fetch, once
for each version.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PTXAS = "13.0.88"  # of the toolkit that GPU machines with CUDA 13 have; newer ones may spill less
FETCH_S = 600
COMPLETE = "complete"  # the file that says so
MARK = "REPORT "  # before a report among the lines that a worker prints


class CompilerAbsent(Exception):
    """The wheels are not in the cache and could not be fetched."""


def requirements() -> list[str]:
    """Name the wheels that fit the installed jax."""
    jax = importlib.metadata.version("jax")
    return [f"jax-cuda13-plugin=={jax}", f"jax-cuda13-pjrt=={jax}", f"nvidia-cuda-nvcc=={PTXAS}"]


def cache_folder() -> Path:
    """Name the folder of this version, which need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax, python = importlib.metadata.version("jax"), "".join(map(str, sys.version_info[:2]))
    return Path(home) / "rtp_jax" / "gpu_gate" / f"py{python}-jax{jax}-ptxas{PTXAS}"


def fetched() -> Path:
    """Return the folder with the compiler, after fetching it if this is the first time.

    Raises:
      CompilerAbsent: it is not there and the package index does not answer.
    """
    folder = cache_folder()
    if (folder / COMPLETE).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        _install(partial)
        (partial / COMPLETE).touch()
        if not (folder / COMPLETE).exists():  # somebody else may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _install(folder: Path) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
    command += ["--python", sys.executable, "--target", str(folder), *requirements()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise CompilerAbsent(f"fetching the compiler took longer than {FETCH_S} s") from error
    if done.returncode:
        raise CompilerAbsent(f"the compiler for sm_90a cannot be fetched: {done.stderr[-400:]}")


def environment(folder: Path, root: Path) -> Mapping[str, str]:
    """Return the variables of a process that compiles for the GPU and computes on the CPU."""
    ptxas = next(folder.glob("nvidia/**/bin/ptxas"), None)
    if ptxas is None:
        raise CompilerAbsent(f"{folder} has no ptxas; remove the folder to fetch it again")
    return {
        **os.environ,
        "PATH": f"{ptxas.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{root}",
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
