"""The journal of a job: a line for each part that is written, so that an interrupted one goes on.

A line is JSON, `[file, part, sha256]`, and is written after the bytes it is about.  It is believed
only after these bytes were read again, so a torn line, or one that came to the disk before the
bytes, costs time and nothing else.
"""

import json
import os
from pathlib import Path

from rtp_jax.weights.files import open_regular, read_up_to

NAME = ".journal"
MAX_BYTES = 1 << 30


class Journal:
    """What was written so far."""

    def __init__(self, path: Path):
        self.digests: dict[tuple[str, int], str] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self.file = os.fdopen(os.open(path, flags, 0o644), "a", encoding="utf-8")
        with open_regular(path) as file:
            text = read_up_to(file, path, MAX_BYTES).decode("utf-8", "replace")
        for line in text.splitlines():
            self._take(line)
        if text and not text.endswith("\n"):
            self.file.write("\n")

    def _take(self, line: str) -> None:
        try:
            match json.loads(line):
                case [str(file), int(number), str(digest)]:
                    self.digests[file, number] = digest
        except (ValueError, RecursionError):
            return  # torn: the part is written again

    def digest(self, file: str, number: int) -> str | None:
        """Give the sha256 of a part that was written, or None."""
        return self.digests.get((file, number))

    def add(self, file: str, number: int, digest: str) -> None:
        """Note that a part was written."""
        self.digests[file, number] = digest
        self._line(file, number, digest)

    def forget(self, file: str) -> None:
        """Note that a file is not what was written."""
        for known, number in list(self.digests):
            if known == file:
                self.digests[known, number] = ""
                self._line(file, number, "")

    def _line(self, *fields: object) -> None:
        self.file.write(json.dumps(fields) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
