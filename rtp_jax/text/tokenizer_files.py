"""How are the files of a tokenizer read, when whoever wrote them is not trusted?

Every file is checked before its bytes are handed to a parser: a regular file, not too large, and
not a format that could hold code.  Read `special_tokens.py` next.
"""

import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rtp_jax.errors import CheckpointError

MAX_TOKENIZER_BYTES = 256 << 20  # the largest known tokenizer.json has 33 MB
MAX_CONFIG_BYTES = 16 << 20  # tokenizer_config.json lists added tokens, 1.2 MB in Gemma 3

# What a file begins with if it is something else, and what to say about it.
FOREIGN_STARTS = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive (torch saves those)",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"#!": "a script",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was never downloaded",
}


def read_checked(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file of a checkpoint, or say by name why it is refused."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise CheckpointError(
                f"RTPJ-3302 TOKENIZER_FILE_UNREADABLE: {path} is not a regular file. "
                "Put a copy of the file there."
            )
        if status.st_size > max_bytes:
            raise CheckpointError(
                f"RTPJ-3303 TOKENIZER_FILE_TOO_LARGE: {path} has {status.st_size} bytes, "
                f"{max_bytes} are allowed. No known tokenizer is that large: check the file."
            )
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"RTPJ-3302 TOKENIZER_FILE_UNREADABLE: {path}: {error.strerror}. "
            "Check that the file exists and that this user may read it."
        ) from None
    for start, what in FOREIGN_STARTS.items():
        if content.startswith(start):
            raise CheckpointError(
                f"RTPJ-3305 TOKENIZER_FORMAT_REFUSED: {path} is {what}. Only tokenizer.json "
                "and sentencepiece models are read; nothing that could run code is opened."
            )
    return content


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one."""
    if not path.exists():
        return {}
    content = read_checked(path, max_bytes=max_bytes)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise corrupt(path, str(error) or "nested too deeply") from None
    if not isinstance(value, dict):
        raise corrupt(path, f"it holds a {type(value).__name__} where an object belongs")
    return value


def corrupt(path: Path, reason: str) -> CheckpointError:
    """Make the error for a file whose content makes no sense."""
    return CheckpointError(
        f"RTPJ-3304 TOKENIZER_FILE_CORRUPT: {path}: {reason[:300]}. "
        "Download or convert the tokenizer again; the file may be truncated."
    )


@contextlib.contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn whatever a tokenizer library raises about a bad file into an error that names it.

    `tokenizers` raises bare `Exception`, and its panics are a `BaseException` that has no
    importable name, so both are recognised by hand; nothing else is caught.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise corrupt(path, str(error)) from None
        raise
