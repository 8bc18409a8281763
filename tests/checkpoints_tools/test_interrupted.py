"""Interrupted jobs: whenever it happens, `--resume` gives the bytes of an unbroken run."""

import os
from pathlib import Path

import numpy as np
import pytest

from checkpoints_tools import job
from checkpoints_tools.main import main
from tests.checkpoints_tools.killed import Command, assert_unreadable, killed_and_resumed
from tests.checkpoints_tools.written import every_dtype, run, save, tiny, tree

PLANS = {
    "safetensors": ["convert", "--to", "safetensors", "--max-file-size", "20KB"],
    "orbax": ["convert", "--to", "orbax", "--dtype", "bfloat16"],
    "int4": ["quantize", "--scheme", "int4", "--group-size", "32"],
}


def arguments(plan: str, source: Path, out: Path) -> list[str]:
    command, *options = PLANS[plan]
    return [command, str(source), str(out), *options]


class Interrupted(BaseException):
    """The end of the process, as far as the job can see."""


@pytest.mark.parametrize("plan", PLANS)
def test_an_end_after_any_write_is_taken_up(tmp_path, monkeypatch, plan):
    source = tiny(tmp_path / "source")
    assert run(*arguments(plan, source, tmp_path / "whole")) == 0
    expected, out, write = tree(tmp_path / "whole"), tmp_path / "out", job._write_all
    monkeypatch.setattr("os.fsync", lambda _: None)  # a process ends here, not a machine
    budget = 0

    def until(opened, block):
        nonlocal budget
        budget -= 1
        if budget < 0:
            half = len(block) // 2
            write(opened, block[:half])  # torn
            raise Interrupted
        write(opened, block)

    monkeypatch.setattr(job, "_write_all", until)
    for rounds in range(1000):
        budget = 3
        try:
            assert main([*arguments(plan, source, out), *["--resume"][: rounds > 0]]) == 0
            break
        except Interrupted:
            assert_unreadable(tmp_path / "out.partial", expected)
    assert rounds > 5
    assert tree(out) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"source", "whole", "out"}


@pytest.mark.parametrize("plan", ["safetensors", "orbax"])
def test_an_end_between_the_last_renames_is_taken_up(tmp_path, monkeypatch, plan):
    numbers = np.arange(6000, dtype=np.float32)
    old = save(tmp_path / "old", {"a": numbers, "b": numbers})
    source, out = save(tmp_path / "source", {"a": -numbers, "b": numbers}), tmp_path / "out"
    assert run(*arguments(plan, source, tmp_path / "whole")) == 0
    expected, rename, left = tree(tmp_path / "whole"), os.rename, 1000
    monkeypatch.setattr("os.fsync", lambda _: None)

    def until(*names):
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted
        rename(*names)

    for number in range(1, 100):
        left = 1000
        assert run(*arguments(plan, old, out), "--overwrite") == 0
        left = number
        with monkeypatch.context() as patch:
            patch.setattr("os.rename", until)
            try:
                assert main([*arguments(plan, source, out), "--overwrite"]) == 0
                break
            except Interrupted:
                pass
        before = tree(out) if out.exists() else None
        assert before is None or len(before) == len(expected)  # whole, be it the old or the new
        assert run(*arguments(plan, source, out), "--resume", "--overwrite") == 0
        assert tree(out) == expected
    assert number > 3
    assert {path.name for path in tmp_path.iterdir()} == {"old", "source", "whole", "out"}


def job_of(tmp_path: Path, plan: str) -> tuple[Command, Path]:
    """Write a checkpoint of 6 MB; return the command of a job on it, and a folder for outputs."""
    names = [f"model.layers.{layer}.up.weight" for layer in range(12)]
    tensors = {name: np.full((256, 512), i, np.float32) for i, name in enumerate(names)}
    source = save(tmp_path / "source", tensors)
    (tmp_path / "outputs").mkdir()
    return lambda out: arguments(plan, source, out), tmp_path / "outputs"


@pytest.mark.parametrize("plan", PLANS)
def test_killed_at_a_random_moment(tmp_path, plan):
    killed_and_resumed(*job_of(tmp_path, plan), kills=1, seed=7)


@pytest.mark.full
@pytest.mark.parametrize("plan", PLANS)
def test_killed_at_twenty_random_moments(tmp_path, plan):
    moments = killed_and_resumed(*job_of(tmp_path, plan), kills=20, seed=11)
    assert min(moments) < 0.2 < 0.6 < max(moments)  # early and late


def interrupted(tmp_path: Path, monkeypatch) -> tuple[list, Path]:
    """Leave a partial output that lacks little."""
    source, out = save(tmp_path / "source", every_dtype()), tmp_path / "out"
    command = ["convert", source, out, "--to", "orbax"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_check", stop)
        assert run(*command) == 130
    return command, tmp_path / "out.partial"


def test_what_changed_on_the_disk_meanwhile_is_written_again(tmp_path, monkeypatch):
    command, partial = interrupted(tmp_path, monkeypatch)
    for name in ("model.f32.weight/0", "model.bf16.weight/0", "_METADATA.partial"):
        path = partial / name
        path.write_bytes(b"\xff" + path.read_bytes()[:-1] + b"more")
    (partial / "model.u8.weight" / "0").unlink(missing_ok=True)
    (partial / "not-ours").write_text("dropped")
    (partial / "folder").mkdir()
    assert run(*command, "--resume") == 0
    assert run("convert", command[1], tmp_path / "whole", "--to", "orbax") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "torn", '["a", 1', '[]\n{"a": 1}\n["x", 1, 2]\n\xff'])
def test_a_torn_journal_costs_nothing_but_time(tmp_path, monkeypatch, text):
    command, partial = interrupted(tmp_path, monkeypatch)
    journal = partial / ".journal"
    journal.write_text(journal.read_text()[:200] + text)
    assert run(*command, "--resume") == 0
    assert run("verify", command[1], tmp_path / "out") == 0


def test_a_disk_that_forgets_is_noticed(tmp_path, monkeypatch, capsys):
    command, partial = interrupted(tmp_path, monkeypatch)
    check = job._check

    def damage(*arguments):
        chunk = partial / "model.f16.weight" / "0.0.0"
        chunk = chunk if chunk.exists() else next(partial.glob("model.f16.weight/0*"))
        chunk.write_bytes(bytes(chunk.stat().st_size))
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_check", damage)
        assert run(*command, "--resume") == 3
    assert "RTPJ-3609 HASH_MISMATCH" in capsys.readouterr().err
    assert run(*command, "--resume") == 0
    assert run("verify", command[1], tmp_path / "out") == 0


def test_a_partial_output_is_not_mixed_with_another(tmp_path, monkeypatch, capsys):
    command, partial = interrupted(tmp_path, monkeypatch)
    before = tree(partial)
    assert run(*command) == 2
    assert "RTPJ-3602 PARTIAL_EXISTS" in capsys.readouterr().err
    assert run(*command, "--dtype", "float32", "--resume") == 2
    other = save(tmp_path / "other", every_dtype(5))
    assert run("convert", other, *command[2:], "--resume") == 2
    assert capsys.readouterr().err.count("RTPJ-3603 RESUME_MISMATCH") == 1  # fp8: dtype is refused
    assert tree(partial) == before
    assert run("convert", other, *command[2:], "--overwrite") == 0
    assert run("verify", other, tmp_path / "out") == 0
    assert not partial.exists()


def test_a_link_in_the_place_of_the_partial_output_is_not_followed(tmp_path, capsys):
    elsewhere, source = tmp_path / "elsewhere", save(tmp_path / "source", every_dtype())
    elsewhere.mkdir()
    (tmp_path / "out.partial").symlink_to(elsewhere)
    for option in ("--resume", "--overwrite"):
        assert run("convert", source, tmp_path / "out", "--to", "orbax", option) == 2
    (tmp_path / "out.partial").unlink()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / ".job").write_text("")
    (tmp_path / "out.partial" / "model.f32.weight").symlink_to(elsewhere)
    assert run("convert", source, tmp_path / "out", "--to", "orbax", "--resume") == 0
    assert "RTPJ-3601" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []
