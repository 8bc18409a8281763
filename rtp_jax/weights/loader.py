"""How does a checkpoint become the parameters of a model?  Plan from the headers, then read once.

Each file is read front to back, in parts of a few megabytes.  What devices hold as it is stored is
read straight into the buffers that become their arrays.  Everything else is read into staging, and
converted, encoded and cut by a few threads while more is read; then its staging serves again.  When
the last number of a parameter is in, its buffers are handed over.  The peak on the host is the
parameters as held and `STAGING`, and once the largest tensor if one must be seen whole.

Over a mesh each process keeps what its devices hold.  Several processes share the files: what
others need of a part goes to them (`exchange.py`).

Read next: `plan.py` for what is checked before, `parts.py`, `reader.py`, `placing.py`.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rtp_jax.weights.checkpoint import Checkpoint, read_checkpoint
from rtp_jax.weights.convert import Allocate, aligned
from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.exchange import Exchange, Lanes, Link
from rtp_jax.weights.gathering import Gathering, matrices
from rtp_jax.weights.held import Held
from rtp_jax.weights.parts import PART, Part, Run, parts_of, shared_out
from rtp_jax.weights.placing import Placed, Placing
from rtp_jax.weights.plan import Parameters, plan
from rtp_jax.weights.reader import Reading, read_parts
from rtp_jax.weights.shards import Box, shape_of
from rtp_jax.weights.spread import OneDevice, Place, Spread
from rtp_jax.weights.staging import Staging
from rtp_jax.weights.table import WeightTable

STAGING = 64 << 20  # bytes
MAX_WORKERS = 8  # threads that convert and encode


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come; bytes count what this process really read, headers included."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    seconds: float


def load(
    folder: Path,
    table: WeightTable,
    parameters: Parameters,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
    place: Place | None = None,
    allocate: Allocate = aligned,
    spread: Spread | None = None,
    exchange: Exchange | None = None,
    reading: Reading = Reading(),
) -> dict[str, jax.Array]:
    """Load a checkpoint.

    Args:
      folder: holds `model.safetensors`, or several files and their index.
      table: which tensor becomes which parameter.
      parameters: dotted path to shape and dtype of every parameter; floats are rounded to it.
      encoders: for the paths that are held in another encoding than they are stored in.
      progress: called after each block, and at the end.
      place: turns a complete host array, which is then its own, into a device array.  By default it
        goes to the default device.
      allocate: gives the host arrays of parameters.
      spread: where parameters go instead, if it is not one device.
      exchange: connects the processes whose devices `spread` names, if they are several.
      reading: how files are read.

    Returns:
      Dotted path to array, for each of `parameters`, or for what its encoder holds instead.
    """
    link = Link(exchange) if exchange else None
    with _told_to(link):
        checkpoint = read_checkpoint(folder)
        if link:
            link.agree_on(checkpoint)
        loading = Loading(
            checkpoint,
            table,
            parameters,
            encoders=encoders or {},
            spread=spread or OneDevice(place or (lambda _, array: jax.device_put(array))),
            report=progress or (lambda _: None),
            allocate=allocate,
        )
        return loading.run(reading, link)


@contextmanager
def _told_to(link: Link | None) -> Iterator[None]:
    """Tell the other processes if this one fails."""
    try:
        yield
    except BaseException as error:
        if link:
            link.fail(error)
        raise


class Loading:
    """A load on its way: parameters that are complete, and parts that are not yet placed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        table: WeightTable,
        parameters: Parameters,
        *,
        encoders: Mapping[str, Encoder],
        spread: Spread,
        report: Callable[[LoadProgress], None],
        allocate: Allocate,
    ):
        self.checkpoint, self.spread, self.report = checkpoint, spread, report
        file_of = {t.name: file.path for file in checkpoint.files for t in file.tensors}
        decided = plan(checkpoint.tensors(), table, parameters, file_of)
        self.described = dict(parameters)
        for path, encoder in encoders.items():
            if self.described.pop(path, None) is not None:
                self.described |= encoder.held
        self.loaded: dict[str, jax.Array] = {}
        boxes = {
            path: spread.boxes(path, described.shape, spread.process)
            for path, described in self.described.items()
        }
        self.held = Held(self.described, boxes, self._complete, allocate)
        matrix_of = matrices(decided, encoders)
        self.shares = shared_out(checkpoint.files, spread.num_processes, matrix_of)
        gathering = Gathering(matrix_of, self.shares)
        self.placing = Placing(decided, parameters, encoders, self.held, spread, gathering)
        self.num_workers = min(num_cores(), MAX_WORKERS)
        self.staging = Staging(STAGING)
        self.opened: deque[np.ndarray | None] = deque()  # staging of parts that are being read
        self.placed: deque[tuple[Part, np.ndarray | None, Future[Placed] | None]] = deque()
        self.ignored = np.empty(PART, np.uint8)  # where bytes go that nobody needs
        self.lanes: Lanes | None = None
        mine = self.shares[spread.process]
        self.bytes_done = sum(header.data_start for header in checkpoint.files)
        self.bytes_total = self.bytes_done + sum(run.size for run in mine)
        self.tensors_done, self.tensors_total = 0, sum(len(run.tensors) for run in mine)
        self.started = time.perf_counter()

    def run(self, reading: Reading, link: Link | None) -> dict[str, jax.Array]:
        """Read everything, and give what has become of it."""
        if link:
            everybody = [list(self._parts(share)) for share in self.shares]
            self.lanes = Lanes(link, everybody, self.placing)
        with ThreadPoolExecutor(self.num_workers, "place-weights") as self.workers:
            mine = self.shares[self.spread.process]
            runs = ((run.header, self._parts([run])) for run in mine)
            read_parts(runs, self, reading, self._count)
            while self.placed:
                self._settle_oldest()
        if self.lanes:
            self.lanes.finish()
        self._count(0)
        missing = self.described.keys() - self.loaded.keys()
        assert not missing, f"the plan fills every parameter, not so {missing}"
        return self.loaded

    def _parts(self, runs: Sequence[Run]) -> Iterator[Part]:
        for run in runs:
            yield from parts_of(run, self.placing.rows_together, PART)

    def open(self, part: Part) -> list[np.ndarray] | None:
        """Give the memory into which a part is read."""
        if not self.placing.placements(part):
            self.opened.append(None)
            whole, rest = divmod(part.size, self.ignored.nbytes)
            return [self.ignored] * whole + [self.ignored[:rest]]
        self._settle()
        self.placing.prepare(part)
        if (straight := self.placing.straight(part)) is not None:
            self.opened.append(None)
            return straight
        if (memory := self.staging.take(part.size)) is None:
            return None
        self.opened.append(memory)
        return [memory]

    def full(self, part: Part) -> None:
        """Let a thread place what came to staging."""
        memory, task = self.opened.popleft(), None
        if memory is not None:
            task = self.workers.submit(self.placing.place, part, memory)
        self.placed.append((part, memory, task))
        self._settle()

    def wait(self) -> None:
        """Wait for the oldest part."""
        self._settle_oldest()

    def _settle(self) -> None:
        """Settle what is placed, in order, without waiting."""
        while self.placed and (self.placed[0][2] is None or self.placed[0][2].done()):
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        """Count a part that is placed, and send what others need of it."""
        part, memory, task = self.placed.popleft()
        placed = task.result() if task else Placed(self.placing.counts(part), {})
        if memory is not None:
            self.staging.give_back_oldest()
        for path, count in placed.counts:
            self.held.has_come(path, count)
        if self.lanes:
            self.lanes.send(self.placing.outgoing(part, placed))
        self.tensors_done += part.is_last

    def _complete(self, path: str, buffers: dict[Box, np.ndarray]) -> None:
        shape = self.described[path].shape
        assert all(buffer.shape == shape_of(box) for box, buffer in buffers.items())
        self.loaded[path] = self.spread.assemble(path, shape, buffers)

    def _count(self, num_bytes: int) -> None:
        self.bytes_done += num_bytes
        seconds = time.perf_counter() - self.started
        self.report(
            LoadProgress(
                self.bytes_done, self.bytes_total, self.tensors_done, self.tensors_total, seconds
            )
        )


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
