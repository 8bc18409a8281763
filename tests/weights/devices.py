"""Runs a script where jax has several devices, or in several processes that know each other."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240


def run_with_devices(count: int, *arguments: str) -> str:
    """Run Python with virtual CPU devices; return what it prints."""
    (printed,) = _run([arguments], count)
    return printed


def run_processes(count: int, devices: int, *arguments: str) -> list[str]:
    """Run Python in processes that get `process/processes/port` as their last argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _run([(*arguments, f"{process}/{count}/{port}") for process in range(count)], devices)


def _run(several: Sequence[Sequence[str]], devices: int) -> list[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    with ExitStack() as stack:
        files = [[stack.enter_context(TemporaryFile("w+")) for _ in range(2)] for _ in several]
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=err
            )
            for arguments, (out, err) in zip(several, files, strict=True)
        ]
        try:
            for process in processes:
                process.wait(TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        printed = [[_content(file) for file in pair] for pair in files]
    failed = [err for p, (_, err) in zip(processes, printed, strict=True) if p.returncode]
    assert not failed, "\n".join(complaint[-3000:] for complaint in failed)
    return [out for out, _ in printed]


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
