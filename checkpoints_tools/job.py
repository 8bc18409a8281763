"""How does an output come to be?  In `DST.partial`, tensor by tensor, and renamed at the very end.

    DST.partial/  files, in order | .journal: a line for each part that is written, with its sha256

A job that was interrupted is taken up by `--resume`: what the journal names is read again and
compared, what does not agree is dropped, and the rest is written as if nothing had happened.  When
all is there, every file is read once more, compared with what was written, and its sha256 goes into
the manifest.  Files that make the folder a checkpoint come last, and under another name until the
end: an unfinished one is never read as one.

Read next: `journal.py`, `writers.py`.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from checkpoints_tools import manifest
from checkpoints_tools.journal import NAME as JOURNAL
from checkpoints_tools.journal import Journal
from checkpoints_tools.manifest import FileEntry, Manifest, TensorEntry
from checkpoints_tools.report import Report
from checkpoints_tools.source import mismatch
from checkpoints_tools.stored import BLOCK
from checkpoints_tools.target import Target
from checkpoints_tools.writers import DTYPE_NAMES, OutputFile, given
from rtp_jax.errors import FailedPrecondition

HELD_BACK = ".partial"  # added to the names of files until the end
MARGIN = 1 << 20  # bytes for the journal, the manifest and what file systems keep for themselves


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done in the partial folder before anything is written, such as computing tensors."""

    num_bytes: int  # of what it leaves there until the end
    run: Callable[[Path, Report], None]  # does only what an earlier run has not done


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be written, and from what, in words that are equal only for equal bytes."""

    files: Sequence[OutputFile]  # of the tensors
    small: Sequence[OutputFile]  # companions
    completing: Sequence[OutputFile]  # those that make the folder a checkpoint
    inputs: str
    preparation: Preparation | None = None

    @property
    def all_files(self) -> Sequence[OutputFile]:
        """All files, in the order in which they are written."""
        return (*self.files, *self.small, *self.completing)

    @property
    def num_bytes(self) -> int:
        """Bytes of the output, without its manifest."""
        return sum(file.num_bytes for file in self.all_files)

    def path(self, folder: Path, file: OutputFile) -> Path:
        """Where a file is until the output is complete: inside the folder, whatever its name."""
        path = folder / (file.name + HELD_BACK * (file in self.completing))
        assert path.is_relative_to(folder), f"{file.name!r} leads out of {folder}"
        assert ".." not in path.parts[len(folder.parts) :], f"{file.name!r} leads out of {folder}"
        return path

    def summary(self) -> dict[str, object]:
        """What a dry run shows."""
        return {
            "bytes": self.num_bytes,
            "files": {file.name: file.num_bytes for file in self.all_files},
        }


def check_space(job: Job, target: Target) -> None:
    """Refuse a job for which the disk is too small, before anything is written."""
    needed = job.num_bytes + MARGIN + (job.preparation.num_bytes if job.preparation else 0)
    free = shutil.disk_usage(target.parent).free + target.partial_bytes()
    if needed > free:
        raise FailedPrecondition(
            f"RTPJ-3604 DISK_TOO_SMALL: {target.path} needs {needed} bytes, {free} are free in"
            f" {target.parent}. Free {needed - free} bytes, or write to another disk."
        )


def run(job: Job, target: Target, report: Report) -> None:
    """Write the output, or what is missing of it, and give it its name."""
    with _written_to(target.partial), target.opened(job.inputs):
        if job.preparation is not None:
            job.preparation.run(target.partial, report)
        with closing(Journal(target.partial / JOURNAL)) as journal:
            report.start(2 * job.num_bytes)
            for file in job.all_files:
                _write(file, job.path(target.partial, file), journal, report)
            last = given(manifest.NAME, _check(job, target.partial, journal, report).text())
            _write(last, target.partial / last.name, journal, report)
        target.finish(
            {last.name: last.name}
            | {
                str(job.path(target.partial, file).relative_to(target.partial)): file.name
                for file in job.all_files
            }
        )


def _write(file: OutputFile, path: Path, journal: Journal, report: Report) -> None:
    """Write a file from where the journal says that it is right."""
    path.parent.mkdir(exist_ok=True)
    _refuse_link(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with FileIO(os.open(path, flags, 0o644), "r+", closefd=True) as opened:
        kept = _kept(file, opened, journal, report)
        opened.truncate(opened.tell())
        for number, part in enumerate(file.parts[kept:], kept):
            digest, written = hashlib.sha256(), 0
            for block in part.make():
                digest.update(block)
                _write_all(opened, block.data)
                written += block.size
                report.advance(block.size, "written", file.name)
            assert written == part.num_bytes, (file.name, number, written, part.num_bytes)
            journal.add(file.name, number, digest.hexdigest())


def _kept(file: OutputFile, opened: FileIO, journal: Journal, report: Report) -> int:
    """Count the parts that are there and are what the journal says; stop behind them."""
    position = 0
    for number, part in enumerate(file.parts):
        promised = journal.digest(file.name, number)
        if promised is None or _digest(opened, part.num_bytes) != promised:
            opened.seek(position)
            return number
        position += part.num_bytes
        report.advance(part.num_bytes, "kept", file.name)
    return len(file.parts)


def _digest(opened: FileIO, count: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(opened, count):
        digest.update(block)
    return digest.hexdigest()


def _blocks(opened: FileIO, count: int) -> Iterator[bytes]:
    while count and (block := opened.read(min(count, BLOCK))):
        yield block
        count -= len(block)


def _write_all(opened: FileIO, block: memoryview) -> None:
    while block:
        block = block[opened.write(block) :]


def _check(job: Job, folder: Path, journal: Journal, report: Report) -> Manifest:
    """Read everything back, compare, and list it."""
    tensors, files = {}, {}
    for file in job.all_files:
        whole = hashlib.sha256()
        with open(job.path(folder, file), "rb", buffering=0) as opened:
            for number, part in enumerate(file.parts):
                digest = hashlib.sha256()
                for block in _blocks(opened, part.num_bytes):
                    digest.update(block)
                    whole.update(block)
                    report.advance(len(block), "checked", file.name)
                promised = journal.digest(file.name, number)
                assert promised is not None, (file.name, number)
                if digest.hexdigest() != promised:
                    journal.forget(file.name)
                    raise mismatch(f"{folder / file.name}, just written,", promised, digest)
                if tensor := part.tensor:
                    tensors[tensor.name] = TensorEntry(
                        DTYPE_NAMES[tensor.dtype], list(tensor.shape), file.name, promised
                    )
        files[file.name] = FileEntry(file.num_bytes, whole.hexdigest())
    return Manifest(tensors, files)


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise _unwritable(folder, "it is a link")


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Turn what the system says about writing into an error with an id."""
    try:
        yield
    except OSError as reason:
        raise _unwritable(Path(reason.filename or folder), reason.strerror or str(reason)) from None


def _unwritable(path: Path, reason: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"RTPJ-3605 OUTPUT_UNWRITABLE: {path} cannot be written: {reason}. Repair it, then go on"
        " with --resume."
    )
