"""Where a cluster keeps its state: a folder that only its user can read.

    lock           held by the controller while it lives
    wanted.json    what `scale`, `restart` and `down` ask of it
    asking         held by whoever changes that
    members.yaml   the workers that serve, for routers
    status.json    what there is, for `status`
    logs/          one file for each replica, and the controller's

Files are replaced as a whole.  There is no port to protect: who may write here may command.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rtp_jax.environment import cluster_states
from rtp_jax.errors import AlreadyExists, FailedPrecondition, NotFound
from rtp_jax.serving.cluster.controller import Wanted

LOG = "controller.log"
LOCK_S = 0.5
OTHERS = 0o077  # what a mode lets anybody else do


class Folder:
    """The state of one cluster."""

    def __init__(self, clusters: Path, name: str):
        self.name = name
        self.path = clusters / name
        self.members, self.logs = self.path / "members.yaml", self.path / "logs"
        self._wanted, self._status = self.path / "wanted.json", self.path / "status.json"

    @property
    def flags(self) -> str:
        """Flags that name this cluster to another command."""
        clusters = self.path.parent
        where = "" if clusters == cluster_states() else f" --state {shlex.quote(str(clusters))}"
        return f"--name {self.name}{where}"

    def make(self) -> None:
        """Create it, for nobody else.

        Raises:
          FailedPrecondition: it cannot be made, others own it, or can write there.
        """
        try:
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.path / "lock").open("a"):
                pass
        except OSError as error:
            raise FailedPrecondition(
                f"RTPJ-5631 STATE_FOLDER_UNUSABLE: nothing can be written to {self.path}:"
                f" {error.strerror}. Name another folder with --state.",
                field="state",
            ) from error
        for each in (self.path, self.logs):
            if fault := _fault(each):
                raise FailedPrecondition(
                    f"RTPJ-5628 STATE_FOLDER_UNSAFE: {each} {fault}, and whoever writes there"
                    " commands the cluster. Name another with --state.",
                    field="state",
                )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the one controller of this cluster.

        Raises:
          AlreadyExists: there is one.
        """
        with (self.path / "lock").open("a") as lock:
            until_s = time.monotonic() + LOCK_S
            while not (locked := _locked(lock)) and time.monotonic() < until_s:
                time.sleep(0.05)  # somebody may just be looking whether it is held
            if not locked:
                raise AlreadyExists(
                    f"RTPJ-5621 CLUSTER_RUNNING: a cluster {self.name} is up. Choose another name,"
                    f" or end it: rtp-jax cluster down {self.flags}.",
                    field="name",
                )
            yield

    @property
    def alive(self) -> bool:
        """True while a controller holds it."""
        try:
            with (self.path / "lock").open("r+") as lock:
                return not _locked(lock)
        except OSError:
            return False

    def need_alive(self) -> None:
        """Check that there is a controller.

        Raises:
          NotFound: there is none.
        """
        if not self.alive:
            raise NotFound(
                f"RTPJ-5622 CLUSTER_NOT_RUNNING: no cluster {self.name} is up in"
                f" {self.path.parent}. Start it: rtp-jax cluster up FILE.",
                field="name",
            )

    def want(self, wanted: Wanted) -> None:
        """Ask something of the controller, whatever was asked before."""
        with self._asking():
            _write(self._wanted, dataclasses.asdict(wanted))

    def change(self, change: Callable[[Wanted], Wanted]) -> Wanted:
        """Ask something that depends on what is asked already; nobody else asks meanwhile."""
        with self._asking():
            wanted = change(self.wanted())
            _write(self._wanted, dataclasses.asdict(wanted))
        return wanted

    def wanted(self) -> Wanted:
        """Read what is asked of the controller."""
        content = json.loads(self._wanted.read_text())
        counts = {str(name): int(count) for name, count in content["counts"].items()}
        return Wanted(counts, bool(content["down"]), int(content.get("num_restarts", 0)))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        with (self.path / "asking").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def report(self, status: dict[str, Any]) -> None:
        """Write what there is."""
        _write(self._status, status)

    def status(self) -> dict[str, Any]:
        """Read what there was when the controller wrote last; nothing if it has not yet."""
        return json.loads(self._status.read_text()) if self._status.exists() else {}

    def forget(self) -> None:
        """Forget what an earlier controller wrote."""
        self._status.unlink(missing_ok=True)


def running(clusters: Path) -> list[str]:
    """List the clusters that have a controller."""
    if not clusters.is_dir():
        return []
    return sorted(each.name for each in clusters.iterdir() if Folder(clusters, each.name).alive)


def the_one(clusters: Path, name: str | None) -> Folder:
    """Find the cluster that is meant: the named one, or the only one there is.

    Raises:
      NotFound: it is not up, or it is not clear which.
    """
    if name is None:
        names = running(clusters)
        if len(names) != 1:
            raise NotFound(
                f"RTPJ-5622 CLUSTER_NOT_RUNNING: {len(names)} clusters are up in {clusters}"
                f" ({', '.join(names) or 'none'}). Name one with --name.",
                field="name",
            )
        name = names[0]
    folder = Folder(clusters, name)
    folder.need_alive()
    return folder


def _fault(folder: Path) -> str:
    """Say why others could write to a folder, after an attempt to make it ours alone."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a link, which may lead elsewhere tomorrow"
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"
    if status.st_uid != os.getuid():
        return "is somebody else's"
    if status.st_mode & OTHERS:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
        if folder.lstat().st_mode & OTHERS:  # not every file system keeps modes
            return "cannot be kept from others, not even with chmod"
    return ""


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
