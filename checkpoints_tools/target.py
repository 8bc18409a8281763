"""Where an output goes: may it, what of it is there already, and how it gets its name.

Nothing that exists is overwritten without `--overwrite`, and even then only what this tool wrote.

Read next: `job.py`.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools import manifest
from rtp_jax.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from rtp_jax.weights.files import read_small

SYNCS_AT_ONCE = 16
JOB = ".job"  # what the partial output is made from; locked while somebody writes


@dataclass(frozen=True, kw_only=True)
class Target:
    """The folder to be written."""

    path: Path
    resume: bool = False
    overwrite: bool = False

    @property
    def parent(self) -> Path:
        """The folder that will hold it."""
        return self.path.parent

    @property
    def partial(self) -> Path:
        """Where it is until it is complete."""
        return self.parent / f"{self.path.name}.partial"

    @property
    def replaced(self) -> Path:
        """Where a former output is while the new one takes its name."""
        return self.parent / f"{self.path.name}.replaced"

    def partial_bytes(self) -> int:
        """Bytes that an interrupted job has left, which need no room any more."""
        sizes = [file.lstat().st_size for file in self.partial.rglob("*") if not file.is_symlink()]
        return sum(sizes)

    @contextmanager
    def opened(self, inputs: str) -> Iterator[None]:
        """Make or take up the partial folder; nobody else may write it meanwhile."""
        self.partial.mkdir(exist_ok=True)
        job = os.open(self.partial / JOB, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _lock(job, self.partial)
            mark = hashlib.sha256(inputs.encode()).hexdigest().encode()
            before = os.pread(job, 100, 0) if self.resume else b""
            if before and before != mark:
                raise FailedPrecondition(
                    f"RTPJ-3603 RESUME_MISMATCH: {self.partial} was made from another source or"
                    " with other options. Give those, or start anew with --overwrite."
                )
            if not before:
                _sweep(self.partial, {JOB})
                os.ftruncate(job, 0)
                os.pwrite(job, mark, 0)
            yield
        finally:
            os.close(job)

    def finish(self, name_of: Mapping[str, str]) -> None:
        """Give the complete output, and each of its files, the name that it is to have."""
        _sync_files(self.partial)
        _sweep(self.partial, name_of.keys())
        for path, _, _ in os.walk(self.partial):
            _sync(Path(path))
        for before, name in name_of.items():
            if before != name:
                os.rename(self.partial / before, self.partial / name)
        if os.path.lexists(self.path):
            if os.path.lexists(self.replaced):
                shutil.rmtree(self.replaced)
            os.rename(self.path, self.replaced)
        os.rename(self.partial, self.path)
        _sync(self.path)
        _sync(self.parent)
        if os.path.lexists(self.replaced):
            shutil.rmtree(self.replaced)


def target_of(name: str, *, source: Path, resume: bool, overwrite: bool) -> Target:
    """Check where an output is to go."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    target = Target(path=path, resume=resume, overwrite=overwrite)
    if not os.path.isdir(target.parent):
        raise _invalid(path, f"{target.parent} is no folder", f"Make it: mkdir -p {target.parent}")
    here, there = source.resolve(), path.resolve()
    if here == there or here in there.parents or there in here.parents:
        why = f"it is the source {source}, within it or around it"
        raise _invalid(path, why, "Choose another folder")
    if os.path.lexists(path) and not (overwrite and _is_ours(path)):
        fix = "Give --overwrite to replace it" if _is_ours(path) else "Choose another folder"
        why = "is there" if _is_ours(path) else "is there and was not written by this tool"
        raise AlreadyExists(f"RTPJ-3601 OUTPUT_EXISTS: {path} {why}. {fix}.")
    if os.path.lexists(target.partial):
        _check_partial(target)
    if os.path.lexists(target.replaced) and not _is_ours(target.replaced):
        raise AlreadyExists(
            f"RTPJ-3601 OUTPUT_EXISTS: {target.replaced} is there, which this tool needs for a"
            " moment. Move it away, or choose another folder."
        )
    return target


def _check_partial(target: Target) -> None:
    known = target.partial.is_dir() and not target.partial.is_symlink()
    names = set(os.listdir(target.partial)) if known else set()
    if not known or (names and JOB not in names and manifest.NAME not in names):
        raise AlreadyExists(
            f"RTPJ-3601 OUTPUT_EXISTS: {target.partial} is there and was not written by this tool."
            " Choose another folder, or remove it."
        )
    if not (target.resume or target.overwrite):
        raise AlreadyExists(
            f"RTPJ-3602 PARTIAL_EXISTS: {target.partial} is what an interrupted run left. Go on"
            " with --resume, or start anew with --overwrite."
        )


def _is_ours(path: Path) -> bool:
    """Whether a folder is empty, or an output that is complete."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = os.listdir(path)
    if manifest.NAME not in names:
        return not names
    return manifest.FORMAT.encode() in read_small(path / manifest.NAME, 1 << 30)[:200]


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"RTPJ-3606 OUTPUT_BUSY: another process writes {folder}. Wait for it, or end it."
        ) from None


def _sweep(folder: Path, keep: Collection[str]) -> None:
    """Remove what does not belong into the partial folder, the journal and the mark included."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            full = os.path.join(path, name)
            if os.path.relpath(full, folder) not in keep:
                os.unlink(full)
        for name in folders:
            full = os.path.join(path, name)
            if os.path.islink(full):
                os.unlink(full)
            elif not os.listdir(full):
                os.rmdir(full)


def _sync_files(folder: Path) -> None:
    """Bring all files to the disk; many at once, because a file system commits them together."""
    files = [Path(path, name) for path, _, names in os.walk(folder) for name in names]
    with ThreadPoolExecutor(SYNCS_AT_ONCE, "sync") as pool:
        for _ in pool.map(_sync, files):
            pass


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _invalid(path: Path, reason: str, fix: str) -> InvalidArgument:
    return InvalidArgument(f"RTPJ-3611 OUTPUT_INVALID: the output {path}: {reason}. {fix}.")
