"""Files that survive the process: `sha256 of the rest | content`, whole or not at all.

They lie in a folder that is ours alone, because some of them are code (`programs.py`).  One that
cannot be read, or whose digest does not match, counts as not there; one that cannot be written is
not kept, and the log says so.
"""

import hashlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)
DIGEST_BYTES = 32


def read(path: Path) -> bytes | None:
    """Read a kept file, or return None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("cannot read %s: %s", path.name, error)
        return None
    payload = content[DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != content[:DIGEST_BYTES]:
        logger.warning("%s is damaged; it is made again", path.name)
        return None
    return payload


def write(path: Path, payload: bytes) -> None:
    """Keep a file; others see all of it or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(hashlib.sha256(payload).digest() + payload)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        logger.warning("%s is not kept: %s", path.name, error)
