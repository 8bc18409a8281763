"""`rtp-jax members`: keeps a router's file of members equal to what names in DNS lead to.

    rtp-jax members members.yaml decode=rtp-decode:50061 prefill=rtp-prefill:50061

Where Kubernetes or another system places the workers, a name leads to the addresses of those that
are ready (a headless Service).  They are looked up again and again, and the file is replaced when
they change.  A name that leads nowhere, for now, keeps the workers that it led to last, also before
a restart of this command: a router sees by itself whether they live.
"""

import argparse
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rtp_jax.config import ROLES
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.serving.flags import parse
from rtp_jax.serving.logs import log_to_stderr
from rtp_jax.serving.members import Member, read_members, write_members

logger = logging.getLogger(__name__)
LOOK_S = 1.0
SOURCE = re.compile(r"([a-z]+)=([A-Za-z0-9.\-_]{1,253}):(\d{1,5})")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
Lookup = Callable[[str], Sequence[str]]  # addresses of a name; OSError if it leads nowhere


def members(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Follow the names until a signal."""
    parser.add_argument("file", help="the file that `rtp-jax route --members` reads")
    parser.add_argument("sources", nargs="+", metavar="ROLE=NAME:PORT", help="a name in DNS")
    parser.add_argument("--once", action="store_true", help="write the file once and stop")
    parsed = parse(parser, arguments)
    sources = [source_of(words) for words in parsed.sources]
    log_to_stderr(as_json=False)
    ended = threading.Event()
    if not parsed.once and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, lambda *_: ended.set())
    following = Following(Path(parsed.file), sources, addresses_of)
    following.look()
    while not parsed.once and not ended.wait(LOOK_S):
        try:
            following.look()
        except FailedPrecondition as error:  # a full disk: the file stays as it is
            following.warn(str(error))
    return 0


class Following:
    """A file, and the names that it follows."""

    def __init__(self, file: Path, sources: Sequence[tuple[str, str, int]], lookup: Lookup):
        self._file, self._sources, self._lookup = file, sources, lookup
        self._led_to: dict[tuple[str, str, int], Sequence[Member]] = {}
        self._before: Sequence[Member] = _listed(file)  # by an earlier life of this command
        self._written: list[Member] | None = None
        self._astray: set[str] = set()  # names that lead nowhere, which was said
        self._warned = ""

    def look(self) -> None:
        """Look all names up, and write the file if something has changed.

        Raises:
          FailedPrecondition: it cannot be written.
        """
        found = [member for source in self._sources for member in self._members(*source)]
        if found != self._written:
            try:
                write_members(self._file, found)
            except OSError as error:
                raise FailedPrecondition(
                    f"RTPJ-5632 MEMBERS_FILE_NOT_WRITTEN: {self._file} cannot be written:"
                    f" {error.strerror}. Make its folder, and let this command write there.",
                    field="file",
                ) from error
            self._written = found
            logger.info("%d members: %s", len(found), ", ".join(each.address for each in found))

    def warn(self, words: str) -> None:
        """Say what is wrong, once until it is something else."""
        if words != self._warned:
            logger.warning("%s", words)
            self._warned = words

    def _members(self, role: str, name: str, port: int) -> Sequence[Member]:
        source = role, name, port
        try:
            found = [Member(_spelled(each, port), role) for each in self._lookup(name)]
        except (OSError, UnicodeError) as error:
            if source not in self._led_to:  # what it led to before a restart has this role and port
                mine = [each for each in self._before if _is_of(each, role, port)]
                self._led_to[source] = mine
            if name not in self._astray:
                stay = len(self._led_to[source])
                logger.warning("%s leads nowhere (%s); %d members stay", name, error, stay)
            self._astray.add(name)
        else:
            if name in self._astray:
                logger.info("%s leads to %d again", name, len(found))
                self._astray.discard(name)
            self._led_to[source] = found
        return self._led_to[source]


def _listed(file: Path) -> Sequence[Member]:
    """Read who is in a file, if there is one."""
    try:
        return read_members(file)
    except InvalidArgument:
        return ()


def _is_of(member: Member, role: str, port: int) -> bool:
    return member.role == role and member.address.rpartition(":")[2] == str(port)


def source_of(words: str) -> tuple[str, str, int]:
    """Read a role, a name and a port.

    Raises:
      InvalidArgument: it is none.
    """
    match = SOURCE.fullmatch(words)
    if match is None or match[1] not in ROLES or int(match[3]) > 65535:
        raise InvalidArgument(
            f"RTPJ-5630 MEMBER_SOURCE_INVALID: {words[:80]!r} names no workers. Write"
            f" ROLE=NAME:PORT with a role of {', '.join(ROLES)}.",
            field="sources",
        )
    return match[1], match[2], int(match[3])


def addresses_of(name: str) -> list[str]:
    """Look a name up; in an order that says nothing, so that it is always the same."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _spelled(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
