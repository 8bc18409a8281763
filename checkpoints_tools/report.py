"""What a command tells its caller: words for people, one JSON object a line for scripts.

Words about progress go to stderr and results to stdout; with `--json`, all of it goes to stdout.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVERY_S = 0.5  # between two lines of progress
MB = 1e6


@dataclass
class Report:
    """Where words go, and how far the work has come."""

    as_json: bool = False
    bytes_total: int = 0
    bytes_done: int = 0
    began_s: float = field(default_factory=time.monotonic)
    shown_s: float = 0.0

    def event(self, kind: str, words: str = "", /, **fields: Any) -> None:
        """Tell of something that happened on the way."""
        if self.as_json:
            _line({"event": kind, **fields})
        elif words:
            print(words, file=sys.stderr, flush=True)

    def result(self, kind: str, words: str, fields: Mapping[str, Any]) -> None:
        """Tell the answer."""
        if self.as_json:
            _line({"event": kind, **fields})
        else:
            print(words, flush=True)

    def start(self, bytes_total: int) -> None:
        """Begin to count bytes."""
        self.bytes_total, self.bytes_done, self.began_s = bytes_total, 0, time.monotonic()

    def advance(self, num_bytes: int, what: str, name: str) -> None:
        """Count bytes that were written, checked or compared; show it now and then."""
        self.bytes_done += num_bytes
        now = time.monotonic()
        if now - self.shown_s < EVERY_S and self.bytes_done < self.bytes_total:
            return
        self.shown_s = now
        seconds = max(now - self.began_s, 1e-9)
        rate = self.bytes_done / seconds
        left = max(0, self.bytes_total - self.bytes_done) / rate if rate else 0.0
        words = (
            f"{what} {self.bytes_done / MB:.1f} of {self.bytes_total / MB:.1f} MB,"
            f" {rate / MB:.0f} MB/s, {left:.0f} s left: {name}"
        )
        self.event(
            "progress",
            words,
            what=what,
            name=name,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            seconds=round(seconds, 3),
        )


def _line(fields: Mapping[str, Any]) -> None:
    print(json.dumps(fields), flush=True)
