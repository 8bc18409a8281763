"""Pages in files of a local disk, found again after a restart.

    PATH/FINGERPRINT/KEY.PARENT     one record each, written under another name and then renamed
    PATH/FINGERPRINT/broken/        a few that could not be read, for whoever wants to know why

The name says all that the index needs, so a start lists the folder and reads no page.  Nothing here
is trusted: what is truncated, changed or gone costs its page.  Where writing fails (no space, read
only, gone) it stops for a while; reading goes on.
"""

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rtp_jax.cache.page_events import TierEvents
from rtp_jax.cache.tiers.leaf_lru import LeafLru
from rtp_jax.cache.tiers.record_bytes import head_of, record_from, size_of
from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.errors import FailedPrecondition
from rtp_jax.page_record import DIGEST_BYTES, PageRecord
from rtp_jax.transfer.stop import Stop

logger = logging.getLogger(__name__)
WRITING_PAUSE_S = 10.0  # after a write that failed
PATIENCE_S = 1.0  # for a disk to answer
SLOWEST_RATE = 20e6  # bytes per second; one that is slower counts as not answering
MAX_BROKEN = 16  # files that are kept
STALE_S = 600.0  # a file that was being written so long ago never will be
PARTIAL = ".partial"
STEP_NS = 1000  # between records that are written back: more than most file systems tell apart


class DiskTier:
    """Records in files, within a budget."""

    name = "disk"

    def __init__(
        self, path: str, budget_bytes: int, fingerprint: bytes, told: TierEvents | None = None
    ):
        """Find what an earlier life left.

        Raises:
          FailedPrecondition: RTPJ-4109, the folder cannot be made, or others may write to it.
        """
        self._folder = Path(path) / fingerprint.hex()
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._order = LeafLru(told)
        if told is not None:
            told.holds(self._order.keys)
        self._parents: dict[bytes, bytes] = {}
        self._paused_until_s = 0.0
        self._mean_bytes = 0.0
        make_private(Path(path))
        self._find_earlier()

    def holds(self, wanted: Wanted) -> int:
        """Count the pages from the first on whose files are known."""
        with self._lock:
            for count, key in enumerate(wanted.keys):
                if key not in self._parents:
                    return count
        return len(wanted)

    def keeps(self, key: bytes) -> bool:
        """Say whether a page has a file, or could not be written now."""
        with self._lock:
            return key in self._parents or time.monotonic() < self._paused_until_s

    def read(self, wanted: Wanted, stop: Stop) -> Iterator[PageRecord]:
        """Yield what the files hold, until one is damaged or gone."""
        with self._lock:
            self._order.touch(list(wanted.keys))
        for key in wanted.keys:
            path = self._path_of(key)
            if path is None or stop.is_set():
                return
            try:
                content = path.read_bytes()
            except OSError as error:
                logger.warning("page file %s cannot be read: %s", path.name, error.strerror)
                self.forget([key])
                return
            if (record := record_from(content)) is None:
                self.reject(key)
                return
            yield record

    def write(self, record: PageRecord) -> list[PageRecord]:
        """Write a record to a file; what leaves for room is deleted, and goes nowhere else."""
        return self._write(record, None)

    def write_back(self, records: Sequence[PageRecord], until_s: float) -> int:
        """Write records, the one that was used last first, until a time; return how many it were.

        They keep that order, here and in the next life, also those that had a file before: each was
        used before the one before it, and takes the room only of what was not used for longer.
        """
        began_ns, count = time.time_ns(), 0
        with self._lock:
            ticks = self._order.reserve(len(records))
        for number, (record, tick) in enumerate(zip(records, ticks, strict=True)):
            if time.monotonic() >= until_s:
                break
            used = _Used(tick, began_ns - number * STEP_NS)
            if (path := self._path_of(record.key)) is None:
                count += not self._write(record, used)
                continue
            with self._lock:
                self._order.date(record.key, tick)
            with contextlib.suppress(OSError):  # it is gone
                os.utime(path, ns=(used.at_ns, used.at_ns))
        return count

    def _write(self, record: PageRecord, used: "_Used | None") -> list[PageRecord]:
        size, tick = size_of(record), None if used is None else used.tick
        with self._lock:
            paused = time.monotonic() < self._paused_until_s
            if record.key in self._parents:
                return []
            if paused or size > self._budget:
                return [record]
            leaving = self._make_room(size, tick)
            fits = self._order.total_bytes + size <= self._budget
        for path in leaving:
            _remove(path)
        if not fits:
            return [record]
        try:
            self._write_file(self._folder / _name(record.key, record.parent), record, used)
        except OSError as error:
            logger.warning("pages are not written to disk for a while: %s", error.strerror)
            with self._lock:
                self._paused_until_s = time.monotonic() + WRITING_PAUSE_S
            return [record]
        with self._lock:
            self._add(record.key, record.parent, size, tick)
        return []

    def reject(self, key: bytes) -> None:
        """Put a broken file aside."""
        path = self._path_of(key)
        with self._lock:
            self._remove_entry(key)
        if path is None:
            return
        broken = self._folder / "broken"
        logger.warning("page file %s is broken and was put aside", path.name)
        try:
            broken.mkdir(mode=0o700, exist_ok=True)
            if len(os.listdir(broken)) < MAX_BROKEN:
                path.replace(broken / path.name)
                return
        except OSError as error:
            logger.warning("page file %s cannot be put aside: %s", path.name, error.strerror)
        _remove(path)

    def forget(self, keys: list[bytes]) -> None:
        """Delete files."""
        paths = [self._path_of(key) for key in keys]
        with self._lock:
            for key in keys:
                self._remove_entry(key)
        for path in paths:
            if path is not None:
                _remove(path)

    def clear(self) -> None:
        """Delete all files."""
        with self._lock:
            keys = self._order.keys()
        self.forget(keys)

    def timeout_s(self, num_pages: int) -> float:
        """Allow a disk to wake up, and some time for the bytes."""
        return PATIENCE_S + num_pages * self._mean_bytes / SLOWEST_RATE

    def checks(self) -> bool:
        """Digests are left to whoever reads."""
        return False

    def compares(self) -> bool:
        """Reading is weighed against computing."""
        return True

    def usage(self) -> tuple[int, int]:
        """Count files and their bytes."""
        return len(self._parents), self._order.total_bytes

    def close(self) -> None:
        """Leave the files for the next life."""

    def _find_earlier(self) -> None:
        """Index what is there, oldest first; remove what was never finished."""
        found = []
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                with contextlib.suppress(OSError):
                    info = (self._folder / name).lstat()
                    if name.endswith(PARTIAL) and time.time() - info.st_mtime > STALE_S:
                        _remove(self._folder / name)
                    elif stat.S_ISREG(info.st_mode) and (identity := _identity(name)):
                        found.append((info.st_mtime_ns, *identity, info.st_size))
        for _, key, parent, size in sorted(found):
            if key not in self._parents:
                self._add(key, parent, size)
        for path in self._make_room(0):
            _remove(path)

    def _write_file(self, path: Path, record: PageRecord, used: "_Used | None") -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(opened, "wb", buffering=0) as file:
                for part in (head_of(record), record.payload):
                    rest = memoryview(part)
                    while rest:
                        rest = rest[file.write(rest) :]
                if used is not None:
                    os.utime(opened, ns=(used.at_ns, used.at_ns))
            partial.replace(path)
        except OSError:
            _remove(partial)
            raise

    def _make_room(self, size: int, before: int | None = None) -> list[Path]:
        """Forget the oldest until a file fits, and return theirs; the lock is held.

        With `before`, forget only what was used before that tick, even if that is not enough.
        """
        leaving = []
        while self._order.total_bytes + size > self._budget:
            key = self._order.oldest(before)
            if key is None and before is not None:
                break
            assert key is not None, "a tier without leaves is empty"
            leaving.append(self._folder / _name(key, self._parents[key]))
            self._remove_entry(key)
        return leaving

    def _add(self, key: bytes, parent: bytes, size: int, tick: int | None = None) -> None:
        self._parents[key] = parent
        self._order.add(key, parent, size, tick)
        self._mean_bytes = self._order.total_bytes / len(self._order)

    def _remove_entry(self, key: bytes) -> None:
        self._parents.pop(key, None)
        self._order.remove(key)

    def _path_of(self, key: bytes) -> Path | None:
        with self._lock:
            parent = self._parents.get(key)
        return None if parent is None else self._folder / _name(key, parent)


@dataclass(frozen=True, slots=True)
class _Used:
    """When a record was used last."""

    tick: int  # of this tier's order
    at_ns: int  # of the clock, for the next life


def _name(key: bytes, parent: bytes) -> str:
    return f"{key.hex()}.{parent.hex()}"


def _identity(name: str) -> tuple[bytes, bytes] | None:
    """Read key and parent from the name of a file; None: it is not one of ours."""
    key, dot, parent = name.partition(".")
    try:
        parts = bytes.fromhex(key), bytes.fromhex(parent)
    except ValueError:
        return None
    return parts if dot and all(len(part) == DIGEST_BYTES for part in parts) else None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def make_private(folder: Path) -> None:
    """Make a folder for this user alone.

    Raises:
      FailedPrecondition: RTPJ-4109, it cannot be made, or others may write to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
        reason = "others may write to it"
        sound = info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except OSError as error:
        sound, reason = False, str(error.strerror)
    if not sound:
        raise FailedPrecondition(
            f"RTPJ-4109 KV_DISK_UNUSABLE: kv_disk_path={str(folder)!r} cannot hold pages"
            f" ({reason}). Choose a folder that is yours alone (`chmod 700`), or leave it out.",
            field="kv_disk_path",
        )
