"""Exchange: what several processes hold together is the checkpoint; failures reach all of them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights import loader
from rtp_jax.weights.exchange import Given, rounds
from rtp_jax.weights.reader import Reading
from rtp_jax.weights.shards import boxes
from tests.weights.models import LAYOUTS, MODELS
from tests.weights.written import counted, random_split, save, tensors

TIMEOUT_S = 60


class Meeting:
    """Where threads that play processes exchange rows; a test may count the rounds."""

    def __init__(self, num_processes: int):
        self.barrier = threading.Barrier(num_processes, timeout=TIMEOUT_S)
        self.rows = [np.empty(0)] * num_processes
        self.num_rounds = 0


@dataclass
class Threads:
    """An exchange between threads."""

    meeting: Meeting
    process: int
    num_processes: int
    round_bytes: int

    def swap(self, rows):
        self.meeting.rows[self.process] = rows.copy()
        if self.meeting.barrier.wait() == 0:
            self.meeting.num_rounds += 1
        came = np.stack([theirs[self.process] for theirs in self.meeting.rows])
        self.meeting.barrier.wait()
        return came


@dataclass
class Boxes:
    """A spread over processes with `devices` devices each, whose arrays are their buffers."""

    splits: dict
    process: int
    num_processes: int
    devices: int

    def boxes(self, path, shape, process):
        mesh = {"p": self.num_processes * self.devices}
        every = boxes(shape, self.splits.get(path, ()), mesh)
        return every[process * self.devices :][: self.devices]

    def assemble(self, path, shape, buffers):
        return dict(buffers)


def load_together(
    folder: Callable[[int], Path],
    num_processes: int,
    *,
    devices: int = 1,
    seed: int = 0,
    kind: str = "plain",
    progress: Callable | None = None,
    round_bytes: int = 3000,
):
    """Load in threads; return what each loaded, or its error, and the bytes each read."""
    model = MODELS[kind]()
    wanted = model.wanted
    axes = {"p": num_processes * devices}
    splits = {p: random_split(a.shape, axes, seed + i) for i, (p, a) in enumerate(wanted.items())}
    meeting = Meeting(num_processes)
    reads = [0] * num_processes

    def one(process: int):
        reading, read = counted(Reading(block_bytes=1000))
        try:
            return loader.load(
                folder(process),
                model.table,
                model.parameters,
                encoders=model.encoders,
                spread=Boxes(splits, process, num_processes, devices),
                exchange=Threads(meeting, process, num_processes, round_bytes),
                reading=reading,
                progress=progress and progress(process),
            )
        except (CheckpointError, MemoryError) as error:
            return error
        finally:
            reads[process] = sum(read)

    with ThreadPoolExecutor(num_processes) as threads:
        outcomes = list(threads.map(one, range(num_processes)))
    return outcomes, reads, wanted, meeting.num_rounds


def assert_whole(loaded, wanted) -> None:
    """What processes hold are the right numbers, and together all of them."""
    for path, array in wanted.items():
        covered = np.zeros(array.shape, bool)
        for one in loaded:
            for box, buffer in one[path].items():
                where = tuple(slice(*ends) for ends in box)
                np.testing.assert_array_equal(buffer, array[where], err_msg=path)
                covered[where] = True
        assert covered.all(), path


@pytest.mark.parametrize(
    ("kind", "seed"),
    [("plain", 0), ("quantized", 1), ("plain", 2), ("quantized", 3)]
    + [("gathered", seed) for seed in range(4)],
)
@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (2, 1), (2, 4), (3, 1), (4, 2), (5, 1)])
def test_together_they_hold_the_checkpoint(tmp_path, monkeypatch, processes, devices, kind, seed):
    monkeypatch.setattr(loader, "PART", 256)
    source = MODELS[kind]().source
    save(tmp_path, source, 1 + seed, seed)
    loaded, reads, wanted, _ = load_together(
        lambda _: tmp_path, processes, devices=devices, seed=seed, kind=kind
    )
    assert sum(reads) == sum(array.nbytes for array in source.values())
    assert_whole(loaded, wanted)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_checkpoint_that_comes_quantized_is_read_once(tmp_path, processes, kind):
    source = MODELS[kind]().source
    save(tmp_path, source, 3)
    loaded, reads, wanted, _ = load_together(
        lambda _: tmp_path, processes, kind=kind, round_bytes=100_000
    )
    assert_whole(loaded, wanted)
    assert sum(reads) == sum(array.nbytes for array in source.values())
    assert max(reads) < 0.8 * sum(reads)


def test_a_process_that_fails_tells_the_others_why(tmp_path):
    save(tmp_path, tensors())

    def progress(process):
        def report(now):
            if process == 1 and now.bytes_done > 0.8 * now.bytes_total:
                raise MemoryError("no room on the device")

        return report

    outcomes, *_ = load_together(lambda _: tmp_path, 3, progress=progress)
    assert isinstance(outcomes[1], MemoryError)
    for other in (outcomes[0], outcomes[2]):
        assert isinstance(other, CheckpointError)
        assert "RTPJ-3110 PROCESS_FAILED: process 1 of 3" in str(other)
        assert "no room on the device" in str(other)


def test_a_folder_that_is_missing_for_one_ends_all(tmp_path):
    save(tmp_path, tensors())
    outcomes, *_ = load_together(lambda p: tmp_path / "no" if p == 0 else tmp_path, 2)
    assert "RTPJ-3010" in str(outcomes[0])
    assert "RTPJ-3110 PROCESS_FAILED: process 0 of 2" in str(outcomes[1])
    assert "RTPJ-3010" in str(outcomes[1])


def test_processes_that_see_other_files_are_refused(tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        save(tmp_path / name, tensors(), 1 + number)
    outcomes, *_ = load_together(lambda p: tmp_path / "ab"[p], 2)
    assert all("RTPJ-3111 PROCESSES_DISAGREE" in str(outcome) for outcome in outcomes)


def simulated(lanes, capacity):
    """Send as planned; return how many rounds there were and the most that waited."""
    waiting = np.zeros((len(lanes), len(lanes)), int)
    done, most, held = [0] * len(lanes), 0, 0
    for after, counts in rounds(lanes, capacity):
        held += 1
        for sender, parts in enumerate(lanes):
            for part in parts[done[sender] : after[sender]]:
                waiting[sender] += part.counts
        most = max(most, waiting.max())
        waiting -= counts
        done = list(after)
        assert waiting.min() >= 0
        assert np.max(counts) <= capacity
    assert not waiting.any()
    assert all(not any(p.counts) for parts, n in zip(lanes, done, strict=True) for p in parts[n:])
    return held, most


def test_even_lanes_travel_in_full_rounds():
    lanes = [[Given(40, (10, 10, 10, 10))] * 100] * 4
    held, most = simulated(lanes, 100)
    assert held == 10
    assert most <= 110


def test_a_lane_that_comes_late_keeps_nothing_back():
    first, last = Given(10, (0, 10, 0)), Given(10, (0, 0, 10))
    held, most = simulated([[first] * 100 + [last] * 100, [], []], 100)
    assert held == 20
    assert most <= 110


def test_one_that_has_nothing_to_send_takes_part_as_it_reads():
    lanes = [[Given(10, (0, 10))] * 100, [Given(10, (0, 0))] * 100]
    after = [held.after for held in rounds(lanes, 100)]
    assert after[0] == (10, 20)
    assert len(after) == 10
