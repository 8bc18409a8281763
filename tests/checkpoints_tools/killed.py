"""Kills jobs of the command line at random moments of their work, and has them resumed."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rtp_jax.errors import RtpError
from rtp_jax.weights.locate import find_model
from tests.checkpoints_tools.written import run, tree

ROOT = Path(__file__).parents[2]
TRIES = 4  # for each kill: a job may be done before its moment comes
TIMEOUT_S = 240

Command = Callable[[Path], Sequence[object]]  # arguments, given where the output is to be


def assert_unreadable(folder: Path, whole: dict[str, str]) -> None:
    """What is left is no model, neither for the engine nor for Orbax, or else it is all of it."""
    if folder.exists() and tree(folder) != whole:
        with pytest.raises(RtpError):
            find_model(str(folder), hub_cache=folder)
        assert not (folder / "_METADATA").exists()
        assert not (folder / "_CHECKPOINT_METADATA").exists()


def working(command: Sequence[object], partial: Path) -> subprocess.Popen:
    """Start a job in a process of its own; return when it begins to write."""
    words = [sys.executable, "-m", "checkpoints_tools", *map(str, command)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until_s = time.monotonic() + TIMEOUT_S
    while not partial.exists() and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.001)
    return process


def seconds_of_work(command: Sequence[object], out: Path) -> float:
    """Let a job run to its end; return how long it takes from its first write to its last."""
    process = working(command, Path(f"{out}.partial"))
    began = time.monotonic()
    while not out.exists() and process.poll() is None:
        time.sleep(0.001)
    took = time.monotonic() - began
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said.decode()[-2000:]
    return took


def killed(command: Sequence[object], out: Path, after_s: float) -> bool:
    """Kill a job some time after it begins to write; whether it was still at it."""
    process = working(command, Path(f"{out}.partial"))
    time.sleep(after_s)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    return not out.exists()


def killed_and_resumed(command: Command, folder: Path, *, kills: int, seed: int) -> list[float]:
    """Kill a job so many times, each time resume it, and compare it with an unbroken run.

    Args:
      command: of the job, given its output.
      folder: for outputs; only the unbroken one remains.
      kills: jobs that are to be killed before they are done.
      seed: of the moments.

    Returns:
      The moments, as shares of the time that an unbroken run works.
    """
    whole, chance, moments = folder / "whole", random.Random(seed), []
    took = seconds_of_work(command(whole), whole)
    expected = tree(whole)
    for number in range(TRIES * kills):
        if len(moments) == kills:
            break
        # One in each part of the time, so that early and late moments are among them.
        out, share = folder / f"out{number}", (len(moments) + chance.random()) / kills
        if killed(command(out), out, share * took):
            moments.append(share)
            assert_unreadable(Path(f"{out}.partial"), expected)
            assert run(*command(out), "--resume") == 0
        assert tree(out) == expected, (number, share)
        assert sorted(path.name for path in folder.iterdir()) == [out.name, whole.name]
        shutil.rmtree(out)
    assert len(moments) == kills
    return moments
