"""Which workers are there?  Those named on the command line, and those in a file that is watched.

The file is a YAML or JSON list; what places workers writes it anew, best by renaming:

    - {address: "127.0.0.1:50061", role: decode}
    - {address: "127.0.0.1:50062", role: prefill, epoch: 5f2c0d9a1b3c4d5e}

`role` is what the worker is told to become; without it, it keeps its own.  With `epoch`, only that
life of the engine is used, and with `layout`, the fingerprint of its KV pages in hex, only one that
has it.  A file that cannot be read leaves things as they are.
"""

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rtp_jax.errors import InvalidArgument
from rtp_jax.router.facts import Role
from rtp_jax.serving.yaml_file import read_yaml

logger = logging.getLogger(__name__)
LOOK_S = 0.25
ADDRESS = re.compile(r"[A-Za-z0-9.\-_]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")
KEYS = ("address", "role", "epoch", "layout")
ROLES = tuple(role.value for role in Role)


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that should be there."""

    address: str
    role: str = ""  # empty: its own
    epoch: str = ""  # empty: any
    layout: str = ""  # fingerprint of its KvLayout in hex; empty: any


def members_of(addresses: str | None) -> list[Member]:
    """Read addresses that are separated by commas."""
    names = [each.strip() for each in (addresses or "").split(",")]
    return [Member(_address(name)) for name in names if name]


def read_members(path: Path) -> list[Member]:
    """Read a file of workers.

    Raises:
      InvalidArgument: it cannot be read, or does not list workers.
    """
    content = read_yaml(path, _bad)
    if not isinstance(content, list):
        raise _bad(path, f"holds a {content.__class__.__name__}, not a list")
    return [_member(path, each) for each in content]


async def follow(path: Path, changed: Callable[[Sequence[Member]], None]) -> None:
    """Read a file again whenever it changes, until cancelled."""
    seen = None
    while True:
        try:
            if seen != (seen := _stamp(path)):
                changed(read_members(path))
        except InvalidArgument as error:
            logger.warning("the workers stay as they are: %s", error)
        await asyncio.sleep(LOOK_S)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _member(path: Path, entry: object) -> Member:
    if not isinstance(entry, dict) or "address" not in entry:
        raise _bad(path, "has an entry without an address")
    if unknown := [str(key) for key in entry if key not in KEYS]:
        raise _bad(path, f"has an entry with {unknown[0][:40]!r}, which is none of {KEYS}")
    role = entry.get("role") or ""
    if role and role not in ROLES:
        raise _bad(path, f"has the role {str(role)[:40]!r}, which is none of {ROLES}")
    epoch, layout = (str(entry.get(key) or "") for key in ("epoch", "layout"))
    return Member(_address(str(entry["address"])), str(role), epoch, layout)


def write_members(path: Path, members: Sequence[Member]) -> None:
    """Write a file of workers as a whole: a reader sees the one before or this one."""
    listed = [
        {name: value for name, value in dataclasses.asdict(member).items() if value}
        for member in members
    ]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(yaml.safe_dump(listed, sort_keys=False))
    partial.replace(path)


def _address(text: str) -> str:
    if not ADDRESS.fullmatch(text) or int(text.rpartition(":")[2]) > 65535:
        raise InvalidArgument(
            f"RTPJ-5604 WORKER_ADDRESS_INVALID: {text[:80]!r} is no address of a worker. Write"
            " HOST:PORT, or [IPV6]:PORT.",
            field="workers",
        )
    return text


def _bad(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5605 MEMBERS_FILE_INVALID: {path} {reason}. List workers as"
        ' {address: "HOST:PORT"}, with role and epoch if wanted.',
        field="members",
    )
