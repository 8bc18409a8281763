"""The environment: which Python is picked, and that everything in it is pinned and hashed."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tools import bootstrap

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = sorted((ROOT / "constraints").glob("*.txt"))
HERE = (sys.version_info[0], sys.version_info[1])


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
    """Make interpreters that only say which version they are; nothing else is on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(bootstrap.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(bootstrap, "PROBE", "say")

    def make(where: str, version: str = "", *, fails: bool = False) -> Path:
        file = tmp_path / where
        file.parent.mkdir(parents=True, exist_ok=True)
        numbers = version.replace(".", " ")
        file.write_text(f"#!/bin/sh\n{'exit 127' if fails else f'echo {numbers} {file}'}\n")
        file.chmod(0o755)
        return file

    return make


def test_the_newest_supported_python_is_picked(fake_python):
    fake_python("bin/python3", "3.11.2")
    fake_python("bin/python3.13", "3.13.1")  # not tested, so not used
    newest = fake_python("bin/python3.12", "3.12.4")
    assert bootstrap.find_python("") == ((3, 12), newest)


def test_a_shim_that_fails_is_passed_over_for_what_pyenv_has(fake_python):
    fake_python("bin/python3.12", fails=True)
    fake_python("pyenv/versions/3.12.9/bin/python", "3.12.9")
    fake_python("pyenv/versions/3.12-dev/bin/python", "3.12.99")
    best = fake_python("pyenv/versions/3.12.10/bin/python", "3.12.10")
    assert bootstrap.find_python("") == ((3, 12), best)


def test_plain_python3_serves_if_it_is_new_enough(fake_python):
    plain = fake_python("bin/python3", "3.11.2")
    assert bootstrap.find_python("") == ((3, 11), plain)
    assert bootstrap.find_python("3.11") == bootstrap.find_python("python3.11") == ((3, 11), plain)
    assert bootstrap.find_python("3.12") is None


def test_a_path_is_taken_or_refused(fake_python):
    chosen = fake_python("elsewhere/python", "3.11.9")
    fake_python("bin/python3", "3.12.1")
    assert bootstrap.find_python(str(chosen)) == ((3, 11), chosen)
    old = fake_python("elsewhere/old", "3.9.2")
    with pytest.raises(SystemExit, match=r"old is not a Python 3.11 or 3.12 that runs"):
        bootstrap.find_python(str(old))


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="runs outside of any environment")
def test_an_environment_is_made_from_what_is_below_an_environment():
    found = bootstrap.find_python(sys.executable)
    assert found is not None
    assert found[0] == HERE
    assert not found[1].is_relative_to(sys.prefix)
    assert found[1].exists()


def test_no_python_ends_with_what_to_install(fake_python, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    with pytest.raises(SystemExit, match="apt install python3"):
        bootstrap.main()


@pytest.mark.parametrize("file", PINS, ids=lambda file: file.name)
def test_every_dependency_is_pinned_and_hashed(file):
    text = file.read_text()
    pins = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert all(
        re.match(r"[a-z0-9.-]+==\S+ .*\\\n +--hash=sha256:[0-9a-f]{64}", pin) for pin in pins
    )
    names = {pin.partition("==")[0] for pin in pins}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert {re.match(r"[\w-]+", name)[0].lower() for name in wanted} <= names
    assert not names & {"torch", "transformers", "triton"}
    assert not re.search(r"://|--index|--find-links| @ ", text)


def test_there_is_one_file_for_each_python():
    assert [file.stem for file in PINS] == [
        "py{}{}".format(*line) for line in bootstrap.LINES[::-1]
    ]
    assert bootstrap.constraints(HERE) in PINS


def test_there_are_few_base_dependencies():
    assert len(PROJECT["dependencies"]) <= 16
