"""A share of one core for each of several processes, as if each had a machine of its own.

Processes that share cores help each other out: where one is idle the others are faster, so a load
that is spread badly costs nothing.  Here each keeps to its core and gets no more than its share of
every hundredth of a second, by the control groups of Linux (version 1, controller `cpu`; root).
One that is killed leaves its groups behind: `rmdir /sys/fs/cgroup/cpu/rtp-jax-bench-*`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CONTROLLER = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 10_000
LEAST = 0.1  # a millisecond in each period


class CoreShare:
    """A share of one core, while a block runs."""

    def __init__(self, share: float, number: int):
        """Choose the core by the number of the process, and the share of its time.

        Raises:
          SystemExit: Linux gives no such share.
        """
        if not LEAST <= share <= 1:
            raise SystemExit(f"--core-share {share:g}: a worker can have {LEAST:g} to 1 of a core.")
        self._quota_us, self._number = int(share * PERIOD_US), number
        self._group = CONTROLLER / f"rtp-jax-bench-{os.getpid()}-{id(self)}"

    def __enter__(self) -> "CoreShare":
        """Make the group; whoever ends in the block may be in it.

        Raises:
          SystemExit: this machine does not let us.
        """
        try:
            self._group.mkdir()
            (self._group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        except OSError as error:
            if self._group.is_dir():
                self._group.rmdir()
            raise SystemExit(
                f"--core-share: {CONTROLLER} cannot be used ({error}). It takes Linux with control"
                " groups of version 1 and root; leave it out to let workers share all cores."
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the group."""
        self._group.rmdir()

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Let what is started in a block be on the core, and from its end on with its share."""
        cores, home = os.sched_getaffinity(0), _group_of_this_process()
        try:
            os.sched_setaffinity(0, {sorted(cores)[self._number % len(cores)]})
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
            yield
        finally:
            os.sched_setaffinity(0, cores)
            (home / "cgroup.procs").write_text(str(os.getpid()))
        (self._group / "cpu.cfs_quota_us").write_text(str(self._quota_us))


def _group_of_this_process() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            group = CONTROLLER / path.lstrip("/")
            return group if group.is_dir() else CONTROLLER  # a container sees its own as the root
    return CONTROLLER
