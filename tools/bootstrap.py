"""Make the virtual environment that `make` runs in: find a Python, install what is pinned.

    python3 tools/bootstrap.py [--python 3.11|python3.11|/path/to/python] [--beside-oldest]

Prints the environment's `bin` folder on standard output and progress on standard error.  Needs
nothing but a Python with `venv`; a second run does nothing, because a stamp in the environment
names the settings and constraints it was made from.  Read `main` first.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = ((3, 12), (3, 11))  # newest first; each has its constraints file
# Of an environment that is switched on the one it was made from: it may be ours, to be made anew.
PROBE = "import sys; print(*sys.version_info[:3], sys._base_executable)"
NO_PYTHON = """\
No supported Python found: rtp_jax needs Python 3.11 or 3.12.
Looked for python3.12, python3.11 and python3 on PATH, and in the versions of pyenv.
On Debian 12: apt install python3 python3-venv.  Or name one: make {goal} PYTHON=/path/to/python3.12
"""
NO_VENV = """\
{python} cannot create virtual environments.
On Debian: apt install python{line}-venv, then run the same command again.
"""


def main() -> None:
    """Print the `bin` folder of a ready environment, making it first if that is needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="", help="a version, a command or a path")
    parser.add_argument(
        "--beside-oldest",
        action="store_true",
        help="the oldest supported Python instead, or nothing if that is the one in use or absent",
    )
    options = parser.parse_args()
    found = find_python(options.python)
    if options.beside_oldest:
        oldest = search(LINES[-1:])
        if found is None or oldest is None or oldest[0] == found[0]:
            return
        found = oldest
    if found is None:
        sys.exit(NO_PYTHON.format(goal="test"))
    line, python = found
    print(ready(line, python) / "bin")


def find_python(wanted: str) -> tuple[tuple[int, int], Path] | None:
    """Return the line and path of the Python that was asked for, or of the newest supported."""
    if not wanted:
        return search(LINES)
    if match := re.fullmatch(r"(?:python)?(\d)\.(\d+)", wanted):
        return search([(int(match[1]), int(match[2]))])
    found = probe(wanted)
    if found is None:
        sys.exit(f"{wanted} is not a Python 3.11 or 3.12 that runs.")
    return found


def search(lines) -> tuple[tuple[int, int], Path] | None:
    """Look for the lines in order: on PATH first, then among the versions of pyenv."""
    for line in lines:
        name = "python{}.{}".format(*line)
        candidates = [name, *pyenv_pythons(line), "python3"]
        for candidate in candidates:
            found = probe(str(candidate))
            if found is not None and found[0] == line:
                return found
    return None


def pyenv_pythons(line: tuple[int, int]) -> list[Path]:
    """List the interpreters of one line that pyenv has installed, newest first."""
    roots = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")]
    roots += [Path(p).parent for p in os.environ.get("PATH", "").split(":") if p.endswith("/shims")]
    pattern = "versions/{}.{}.*/bin/python".format(*line)
    pythons = [python for root in roots for python in root.glob(pattern)]
    patch = re.compile(r"\d+\.\d+\.(\d+)$")
    released = [p for p in pythons if patch.match(p.parent.parent.name)]  # no release candidates
    return sorted(released, key=lambda p: -int(patch.match(p.parent.parent.name)[1]))


def probe(command: str) -> tuple[tuple[int, int], Path] | None:
    """Run an interpreter and return its line and real path if it is a supported one."""
    path = shutil.which(command)
    if path is None:
        return None
    answer = subprocess.run([path, "-c", PROBE], capture_output=True, text=True)
    if answer.returncode != 0:  # a pyenv shim of a version that is not switched on
        return None
    major, minor, _, executable = answer.stdout.strip().split(" ", 3)
    line = (int(major), int(minor))
    return (line, Path(executable)) if line in LINES else None


def ready(line: tuple[int, int], python: Path) -> Path:
    """Return the environment of one Python line, complete and up to date."""
    venv = ROOT / ".venv-py{}{}".format(*line)
    with open(f"{venv}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once: the second waits for the first
        stamp = venv / "made-from"
        wanted = f"{python}\n{digest(line)}\n"
        if stamp.exists() and stamp.read_text() == wanted and runs(venv):
            return venv
        began = time.monotonic()
        say(f"setting up {venv.name} with {python}")
        if not runs(venv) or not stamp.exists() or stamp.read_text().split()[0] != str(python):
            create(venv, line, python)
        install(venv, line)
        stamp.write_text(wanted)
        say(f"{venv.name} is ready after {time.monotonic() - began:.0f} s")
    return venv


def digest(line: tuple[int, int]) -> str:
    """Name the state of everything that decides what is installed."""
    files = (ROOT / "pyproject.toml", constraints(line), Path(__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def constraints(line: tuple[int, int]) -> Path:
    """Return the file with every dependency of one Python line, pinned and hashed."""
    return ROOT / "constraints" / "py{}{}.txt".format(*line)


def runs(venv: Path) -> bool:
    """Say whether the environment's interpreter starts; its Python may have been removed."""
    python = venv / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ""]).returncode == 0


def create(venv: Path, line: tuple[int, int], python: Path) -> None:
    """Create an empty environment, replacing a broken one."""
    if venv.exists():
        shutil.rmtree(venv)
    made = subprocess.run([python, "-m", "venv", venv], stdout=sys.stderr)
    if made.returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit(NO_VENV.format(python=python, line="{}.{}".format(*line)))


def install(venv: Path, line: tuple[int, int]) -> None:
    """Install uv, everything pinned, and the project itself, each checked by its hash."""
    bin, pinned = venv / "bin", constraints(line)
    pip = [bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as uv_only:
        uv_only.write(re.search(r"^uv==.*(?:\n +.*)*", pinned.read_text(), re.MULTILINE)[0])
        uv_only.flush()
        say("installing uv")
        subprocess.run([*pip, "--require-hashes", "-r", uv_only.name], check=True)
    uv = [bin / "uv", "pip", "install", "--python", bin / "python"]
    say(f"installing {pinned.name}: about 700 MB on the first run of a machine")
    pins = ["--require-hashes", "-r", pinned]
    environment = {**os.environ, **pip_index(bin)}
    if subprocess.run([*uv, *pins], env=environment, stdout=sys.stderr).returncode != 0:
        say("uv could not; asking pip, which knows more ways to an index")
        subprocess.run([*pip, *pins], check=True)
    say("installing rtp_jax itself")
    itself = ["--no-deps", "--no-build-isolation", "--editable", ROOT]
    subprocess.run([*uv, "--quiet", "--no-index", *itself], check=True, stdout=sys.stderr)


def pip_index(bin: Path) -> dict[str, str]:
    """Tell uv the index that pip is configured with, since uv does not read pip's settings."""
    answer = subprocess.run([bin / "python", "-m", "pip", "config", "list"], capture_output=True)
    found = re.search(rb"^[\w:]+\.index-url='(.*)'$", answer.stdout, re.MULTILINE)
    if found is None or "UV_DEFAULT_INDEX" in os.environ:
        return {}
    return {"UV_DEFAULT_INDEX": found[1].decode()}


def say(message: str) -> None:
    """Report progress where it does not mix with the answer."""
    print(f"[bootstrap] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
