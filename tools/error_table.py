"""Keep `docs/errors.md` complete: one row for every error id that the sources raise.

    python tools/error_table.py

Rows that exist keep their words; ids that are new get a row whose words are drawn from the
message, to be improved by hand; rows whose id is gone are dropped.  `tests/test_errors.py` checks
the result.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rtp_jax import errors

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
SOURCES = ("rtp_jax", "checkpoints_tools")
ID = re.compile(r"(RTPJ-\d{4}) ([A-Z][A-Z0-9_]+)")
BEGIN, END = "<!-- table: tools/error_table.py -->", "<!-- end of table -->"
HEADER = "| id | name | kind | what is true | what to do |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Raised:
    """One place in the sources that makes an error."""

    id: str
    name: str
    kind: str  # of the class that is made; empty if the message is put together elsewhere
    message: str
    where: str


def raised(root: Path = ROOT) -> list[Raised]:
    """List every error that the sources make, in the order of their ids."""
    files = [file for folder in SOURCES for file in sorted((root / folder).rglob("*.py"))]
    found = [error for file in files for error in raised_in(file, root)]
    return sorted(found, key=lambda error: (error.id, not error.kind))


def raised_in(file: Path, root: Path) -> Iterator[Raised]:
    """List the errors of one file: strings with an id, unless they are docstrings."""
    tree = ast.parse(file.read_text())
    maker = {}  # string -> the call it is the message of; inner calls come later and win
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        maker |= {id(string): call for string in ast.walk(call)}
    inside = {id(v) for j in ast.walk(tree) if isinstance(j, ast.JoinedStr) for v in j.values}
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr | ast.Constant) or id(node) in inside | prose:
            continue
        text = words(node)
        if match := ID.search(text):
            made = maker.get(id(node))
            made_by = ast.unparse(made.func).rpartition(".")[2] if made else ""
            where = f"{file.relative_to(root)}:{node.lineno}"
            yield Raised(match[1], match[2], kind_of(made_by), text[match.end() :], where)


def words(node: ast.JoinedStr | ast.Constant) -> str:
    """Spell a message with an ellipsis for each number or name that it computes."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)


def kind_of(class_name: str) -> str:
    """Return the kind of an error class, or nothing for any other callable."""
    made = vars(errors).get(class_name)
    known = isinstance(made, type) and issubclass(made, errors.RtpError)
    return made.kind.value if known else ""


def rows(page: str) -> dict[str, list[str]]:
    """Read the table: id to the other four cells."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| RTPJ-")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


def completed(known: dict[str, list[str]], found: list[Raised]) -> dict[str, list[str]]:
    """Give every id a row: the words it has, or a draft of them."""
    table = {}
    for error in found:
        if error.id in table:
            continue
        true, _, fix = error.message.lstrip(": ").replace("|", "\\|").partition(". ")
        words = known[error.id][2:] if error.id in known else [true.rstrip("."), fix]
        kind = error.kind or (known[error.id][1] if error.id in known else "")
        table[error.id] = [error.name, kind, *(word.replace("\n", " ") for word in words)]
    return table


def main() -> None:
    """Write the table anew and say what still wants words."""
    page = PAGE.read_text()
    known = rows(page)
    table = completed(known, raised())
    lines = [f"| {id} | {' | '.join(cells)} |" for id, cells in table.items()]
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{HEADER}" + "\n".join(lines) + f"\n{END}{after}")
    for id, cells in table.items():
        if id not in known or not all(cells):
            print(f"{id} {cells[0]}: " + ("some cell is empty" if not all(cells) else "new"))
    for id in known.keys() - table.keys():
        print(f"{id} {known[id][0]}: gone")


if __name__ == "__main__":
    main()
