"""Libraries of native kernels: found, built once, and removed when nobody uses them.

The compiler is a script that writes an empty file; real ones build in the tests of the kernels.
"""

import os
import stat
import time

import pytest

from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.build import UNUSED_S, BuildError, build
from rtp_jax.kernels.native.levels import LEVELS

COMPILER = """#!/bin/sh
for word in "$@"; do
    [ "$before" = -o ] && : > "$word"
    before=$word
done
echo compiler 1.0
"""
LEVEL, OTHER = LEVELS[-1], LEVELS[-2]  # the first runs anywhere


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for libraries, and a compiler in PATH that is quick."""
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text(COMPILER)
    compiler.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(compiler.parent))
    return tmp_path / "native"


def last_used(path, age_s: float) -> None:
    path.touch()
    os.utime(path, times=(time.time() - age_s,) * 2)


def test_a_library_is_built_once(folder):
    told = []
    first = build(LEVEL, folder, report=told.append)
    assert build(LEVEL, folder, report=told.append) == first
    assert len(told) == 1
    assert list(folder.iterdir()) == [first]


def test_a_library_that_is_used_stays_and_one_that_is_not_goes(folder):
    used = build(LEVEL, folder, extra_flags=("-DA",))
    other = build(OTHER, folder)
    unused, recent = (folder / f"native-{LEVEL.name}-{name}.so" for name in ("old", "recent"))
    for path in (used, other, unused):
        last_used(path, UNUSED_S + 60)
    last_used(recent, UNUSED_S - 60)
    assert build(LEVEL, folder, extra_flags=("-DA",)) == used  # from now on it is not old
    built = build(LEVEL, folder)
    assert set(folder.iterdir()) == {used, other, recent, built}


def test_nothing_is_removed_where_nothing_is_built(folder):
    build(LEVEL, folder)
    unused = folder / f"native-{LEVEL.name}-old.so"
    last_used(unused, UNUSED_S + 60)
    build(LEVEL, folder)
    assert unused.exists()


def test_a_library_that_vanishes_before_it_is_opened_is_built_again(folder, monkeypatch):
    paths = []

    def vanishing(*args, **options):
        paths.append(build(*args, **options))
        if len(paths) == 1:
            paths[0].unlink()
        return paths[-1]

    monkeypatch.setattr(library, "build", vanishing)
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(library, "_missing", "")
    reason = library.load(folder, level=LEVEL.name)
    assert len(paths) == 2
    assert "too short" in str(reason)  # the second time it was there, though it is no library


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        build(LEVEL, tmp_path)
