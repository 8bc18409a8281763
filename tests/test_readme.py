"""The README tells the truth: its example runs, its table is whole, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.capability_table import BEGIN, END, ROWS, cell, replaced, table

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "README.md").read_text()
MARK = re.compile(r"mark\.capability\(\s*\"([^\"]+)\"")
PAGES = [
    "README.md",
    "SECURITY.md",
    *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
]


def test_the_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    ran = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.strip().splitlines()) == 2


def test_the_table_has_every_row():
    body = PAGE.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in body.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in lines] == [
        f"| {name}: {text}" for name, text in ROWS.items()
    ]
    assert "[fails]" not in body


def test_every_cell_links_to_a_test_of_its_row():
    cells = re.findall(r"^\| (.*?): .*\[tested\]\((.*?)\)", PAGE, re.MULTILINE)
    assert cells
    for name, file in cells:
        assert name in MARK.findall((ROOT / file).read_text()), (name, file)


def test_every_marked_capability_has_a_row():
    marked = {name: file for file in ROOT.glob("tests/**/*.py") for name in marks(file)}
    assert marked.keys() <= ROWS.keys(), marked


def marks(file: Path) -> list[str]:
    """List the capabilities that a test file says it shows; this file only quotes the marker."""
    quoting = {Path(__file__), Path(__file__).parent / "test_conftest.py"}
    return [] if file in quoting else MARK.findall(file.read_text())


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page):
        assert ((ROOT / name).parent / target).exists(), target


RECORD = {
    "capabilities": [
        {"name": "gRPC", "test": "tests/a.py::test_x", "outcome": "passed"},
        {"name": "drain", "test": "tests/a.py::test_x", "outcome": "passed"},
        {"name": "drain", "test": "tests/b.py::test_y[1]", "outcome": "failed"},
        {"name": "metrics", "test": "tests/c.py::test_z", "outcome": "skipped"},
    ]
}


def test_a_cell_says_what_was_shown():
    shown = [cell(name, RECORD) for name in ("gRPC", "drain", "metrics", "abort")]
    assert shown == ["[tested](tests/a.py)", "[fails](tests/b.py)", "untested", "untested"]
    assert cell("gRPC", None) == "untested"


def test_writing_the_table_again_changes_nothing():
    new = table(RECORD, None)
    page = replaced(PAGE, new)
    assert page.count(new) == 1
    assert replaced(page, new) == page
