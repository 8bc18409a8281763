"""Rows of figures that survive an interruption: each is written as soon as it is known.

A part of the program is a list of named rows.  What a state file already has is not measured again,
unless it failed or there was no time for it.  Nothing is imported here that needs a device.
"""

import datetime
import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "flax",
    "numpy",
    "torch",
    "transformers",
    "tokamax",
)
COLUMNS = ("status", "milliseconds", "share_of_floor", "bound", "over_bfloat16", "rate")
COLUMNS += ("error_of_check", "note")
FINAL = {"ok", "wrong", "skipped"}  # rows that are not tried again


class Skip(Exception):
    """Why a row cannot be measured here, in words."""


class Row(NamedTuple):
    """One figure: its name, and what measures it."""

    name: str
    measure: Callable[[], Mapping[str, Any]]


class Results:
    """The rows of one part, in a folder: `PART.json` and `PART.md`."""

    def __init__(self, folder: Path, part: str, *, dry: bool, budget_s: float):
        self._json, self._table = folder / f"{part}.json", folder / f"{part}.md"
        self._part, self._deadline = part, time.monotonic() + budget_s
        folder.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {"part": part, "dry": dry, "facts": {}, "rows": {}}
        if self._json.exists():
            kept = json.loads(self._json.read_text())
            if kept["part"] == part and kept["dry"] == dry:
                self.content = kept
        self.content["versions"] = versions()
        self.content["python"] = platform.python_version()

    def describe(self, **facts: Any) -> None:
        """Write down what is true of all rows: the device, its limits."""
        self.content["facts"].update(facts)
        self._write()

    def add(self, column: str, values: Mapping[str, Any]) -> None:
        """Write what follows from several rows beside each of them."""
        for name, value in values.items():
            self.content["rows"][name][column] = value
        self._write()

    def run(self, rows: list[Row]) -> None:
        """Measure what is missing; a row that fails does not stop the others."""
        for number, row in enumerate(rows, 1):
            if self.content["rows"].get(row.name, {}).get("status") in FINAL:
                continue
            left = self._deadline - time.monotonic()
            values = {"status": "no time left"} if left <= 0 else _measured(row)
            values["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.content["rows"][row.name] = values
            self._write()
            print(
                f"[{number}/{len(rows)}, {max(left, 0):.0f} s left] {_line(row.name, values)}",
                flush=True,
            )

    def counts(self) -> dict[str, int]:
        """Count rows by status."""
        statuses = [row["status"] for row in self.content["rows"].values()]
        return {status: statuses.count(status) for status in sorted(set(statuses))}

    def _write(self) -> None:
        for path, text in (
            (self._json, json.dumps(self.content, indent=1) + "\n"),
            (self._table, self._markdown()),
        ):
            partial = path.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(path)

    def _markdown(self) -> str:
        facts = {**self.content["facts"], **self.content["versions"]}
        lines = [
            f"# {self._part}{' (dry: no figure means anything)' if self.content['dry'] else ''}",
            "",
        ]
        lines += [f"- {name}: {_cell(value)}" for name, value in facts.items()]
        lines += ["", f"| row | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for name, values in self.content["rows"].items():
            cells = [_cell(values.get(column)) for column in COLUMNS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _measured(row: Row) -> dict[str, Any]:
    began = time.monotonic()
    try:
        values = {"status": "ok", **row.measure()}
    except Skip as reason:
        values = {"status": "skipped", "note": str(reason)}
    except Exception as error:  # whatever it is, the other rows are still worth measuring
        where = traceback.format_exc(limit=-3)
        values = {
            "status": "failed",
            "note": f"{type(error).__name__}: {error}"[:500],
            "trace": where,
        }
    values["took_s"] = round(time.monotonic() - began, 2)
    return values


def versions() -> dict[str, str]:
    """Name the version of every package that matters and is there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")[:160]


def _line(name: str, values: Mapping[str, Any]) -> str:
    shown = [
        f"{column}={_cell(values[column])}" for column in COLUMNS if values.get(column) is not None
    ]
    return f"{name}: {', '.join(shown)} ({values.get('took_s', 0)} s)"
