"""Compiled programs that survive the process: compile in parallel once, load ever after.

Executables are code, so their folder is 0700 and ours, and one that is damaged (`kept_files.py`) is
compiled again.  The name of a file is a hash of everything that shapes the program: sources,
versions, machine, model, bucket.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from rtp_jax.config import compiler_flags
from rtp_jax.errors import FailedPrecondition
from rtp_jax.parallel.devices import WHOLE, Devices, Specs
from rtp_jax.runner import kept_files
from rtp_jax.runner.host_memory import return_free_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """What to compile: a function, the shapes of its arguments, and what it donates.

    Shapes are those of whole arrays; the function is one of what each device has of them, which
    specs say: one for each argument, or for each part of it.
    """

    name: str
    function: Callable
    arguments: tuple
    results: Any  # pytree of anything, shaped like what the function returns
    donated: tuple[int, ...] = ()
    in_specs: Specs = WHOLE
    out_specs: Specs = WHOLE


@dataclass(slots=True)
class CompileReport:
    """What preparing the programs took."""

    compiled: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    seconds: float = 0.0


def prepare_programs(
    programs: list[Program],
    *,
    folder: Path | None,
    key: str,
    devices: Devices,
    progress: Callable[[str], None],
) -> tuple[Mapping[str, jax.stages.Compiled], CompileReport]:
    """Load each program from `folder`, or compile it and keep it there; several at a time."""
    start = time.monotonic()
    report = CompileReport()
    ready: dict[str, jax.stages.Compiled] = {}
    prepare = functools.partial(_prepare, folder=folder, key=key, devices=devices)
    threads = max(1, min(len(programs), os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for program, (compiled, was_loaded) in zip(
            programs, executor.map(prepare, programs), strict=True
        ):
            ready[program.name] = compiled
            (report.loaded if was_loaded else report.compiled).append(program.name)
            verb = "loaded" if was_loaded else "compiled"
            progress(f"{verb} program {program.name} ({len(ready)} of {len(programs)})")
    report.seconds = time.monotonic() - start
    return ready, report


def make_private(folder: Path) -> None:
    """Create the folder for this user alone, or refuse one that others can write to."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = folder.stat()
    if info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FailedPrecondition(
            f"RTPJ-4106 CACHE_NOT_PRIVATE: compile_cache={str(folder)!r} holds executable code and"
            f" may be written by others (mode {stat.S_IMODE(info.st_mode):o}, owner"
            f" {info.st_uid}). Run `chmod 700` on it, or choose another with compile_cache.",
            field="compile_cache",
        )


def environment_key(devices: Devices) -> str:
    """Hash what a program depends on besides the model: sources, versions, machine, devices."""
    device = devices.every[0]
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for room in ("kernels", "layers", "models", "parallel", "quant", "runner"):
        for path in sorted([*(root / room).rglob("*.py"), *(root / room).rglob("*.json")]):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update((root / "sampling_params.py").read_bytes())  # caps that shape the results
    digest.update(compiler_flags().encode() + b"\0")
    for setting in ("jax_enable_x64", "jax_default_matmul_precision"):
        digest.update(f"{getattr(jax.config, setting)} ".encode())
    for package in ("jax", "jaxlib", "flax"):
        digest.update(importlib.metadata.version(package).encode() + b"\0")
    digest.update(f"{platform.python_version()} {device.platform} {device.device_kind}".encode())
    digest.update(f"{_cpu_features()} {os.cpu_count()} {len(jax.devices())}".encode())
    digest.update(f"{devices.shape} {[device.id for device in devices.every]}".encode())
    return digest.hexdigest()


def _cpu_features() -> str:
    """Machine code for a CPU runs only where the same instructions exist."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return " ".join(sorted({line for line in lines if line.startswith(wanted)}))


def _prepare(
    program: Program, *, folder: Path | None, key: str, devices: Devices
) -> tuple[jax.stages.Compiled, bool]:
    """Return a compiled program and whether it came from the folder."""
    described = f"{key} {program.name} {jax.tree.map(_shape, program.arguments)} {program.donated}"
    described += f" {program.in_specs} {program.out_specs}"
    path = None
    if folder is not None:
        path = folder / f"{program.name}-{hashlib.sha256(described.encode()).hexdigest()[:32]}"
        if compiled := _load(path, program, devices):
            return compiled, True
    compiled = lowered(program, devices).compile()
    return_free_memory()  # some 100 MB, before the next one takes as much
    if path is not None:
        payload, _, _ = serialize_executable.serialize(compiled)
        kept_files.write(path, payload)
    return compiled, False


def lowered(program: Program, devices: Devices) -> jax.stages.Lowered:
    """Trace a program for the compiler."""
    function = devices.over(program.function, program.in_specs, program.out_specs)
    jitted = jax.jit(function, donate_argnums=program.donated, keep_unused=True)
    with devices.at_work():
        return jitted.lower(*devices.described(program.arguments, program.in_specs))


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"


def _load(path: Path, program: Program, devices: Devices) -> jax.stages.Compiled | None:
    payload = kept_files.read(path)
    if payload is None:
        return None
    try:
        return serialize_executable.deserialize_and_load(
            payload,
            jax.tree.structure((program.arguments, {})),
            jax.tree.structure(program.results),
            backend=devices.every[0].client,
            execution_devices=devices.every,
        )
    except (RuntimeError, ValueError, TypeError, EOFError) as error:
        logger.warning("compiled program %s does not load (%s); compiling it", path.name, error)
        return None
