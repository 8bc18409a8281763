"""How do processes that share a checkpoint give each other what they need of what they have read?

Every process knows from the headers which parts each process reads, and which bytes of them each
other process needs.  From sender to receiver these bytes are one lane, in the order of reading.
They travel in rounds, in which everybody sends everybody the next bytes of each lane; how many is
computed from the same headers by all, so nothing but bytes is sent:

    round      0          1          2
    0 to 1   |aaaaaaaa| |bbbbbb..| |cccccccc|      each at most `capacity` bytes
    0 to 2   |aa......| |bbbbbb..| |cccccccc|

A process that fails says so in its next round, and all of them end with an error.

Read next: `placing.py` for what is in a lane; the rounds themselves are an all-to-all over a mesh
(`runner/exchange.py`).
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.checkpoint import Checkpoint
from rtp_jax.weights.convert import aligned
from rtp_jax.weights.parts import Part
from rtp_jax.weights.placing import Message, Placing
from rtp_jax.weights.shards import shape_of

DIGEST, WORDS = 16, 1008  # bytes of a row: what all must agree on, and why its sender failed
BYTE = np.dtype(np.uint8)


class Exchange(Protocol):
    """Connects the processes that load one model."""

    process: int
    num_processes: int
    round_bytes: int  # that a process sends in a round, about

    def swap(self, rows: np.ndarray) -> np.ndarray:
        """Send row p (uint8) to process p; return what each sent to us.  All call it together."""
        ...


class Round(NamedTuple):
    """After how many parts a process takes part in a round, and how much everybody sends."""

    after: tuple[int, ...]  # of each process: how many of its parts have been placed
    counts: tuple[tuple[int, ...], ...]  # bytes, [sender][receiver]


class Given(NamedTuple):
    """What becomes of a part that a process reads."""

    size: int  # bytes that are read
    counts: tuple[int, ...]  # bytes for each process


def rounds(lanes: Sequence[Sequence[Given]], capacity: int) -> Iterator[Round]:
    """Plan the rounds.

    A process takes part as soon as one of its lanes has a round's bytes, or it has read as many as
    would fill all of them: what waits to be sent is at most a round and a part in each lane, and
    one that has nothing to send does not keep the others waiting.

    Args:
      lanes: the parts of each process.
      capacity: bytes of a lane in a round.
    """
    waiting = [[0] * len(lanes) for _ in lanes]
    done = [0] * len(lanes)
    while any(map(any, waiting)) or any(n < len(p) for n, p in zip(done, lanes, strict=True)):
        for sender, parts in enumerate(lanes):
            read = 0
            while (
                done[sender] < len(parts)
                and max(waiting[sender]) < capacity
                and read < capacity * len(lanes)
            ):
                part = parts[done[sender]]
                pairs = zip(waiting[sender], part.counts, strict=True)
                waiting[sender] = [count + more for count, more in pairs]
                read += part.size
                done[sender] += 1
        counts = tuple(tuple(min(count, capacity) for count in lane) for lane in waiting)
        waiting = [
            [count - part for count, part in zip(lane, sent, strict=True)]
            for lane, sent in zip(waiting, counts, strict=True)
        ]
        if any(map(any, counts)):
            yield Round(tuple(done), counts)


class Link:
    """An exchange, and the word of everybody that all is well."""

    def __init__(self, exchange: Exchange):
        self.exchange, self.process = exchange, exchange.process
        self.num_processes = exchange.num_processes
        self.capacity = max(exchange.round_bytes // self.num_processes, 1)
        self.rows = aligned((self.num_processes, DIGEST + WORDS + self.capacity), BYTE)
        self.rows[:] = 0
        self.digest = bytes(DIGEST)
        self.is_over = False

    def agree_on(self, checkpoint: Checkpoint) -> None:
        """Let all see whether they load the same files."""
        digest = hashlib.blake2b(digest_size=DIGEST)
        for header in checkpoint.files:
            digest.update(header.digest + header.size.to_bytes(8, "little"))
        self.digest = digest.digest()

    def swap(self) -> np.ndarray:
        """Exchange what is in `rows`; return the bytes that came, [processes, capacity]."""
        self.rows[:, :DIGEST] = np.frombuffer(self.digest, np.uint8)
        self.is_over = True  # unless it works
        came = self.exchange.swap(self.rows)
        for process, row in enumerate(came):
            if words := row[DIGEST:][:WORDS].tobytes().rstrip(b"\0"):
                raise CheckpointError(
                    f"RTPJ-3110 PROCESS_FAILED: process {process} of {self.num_processes} could not"
                    f" load its part: {words.decode(errors='replace')}"
                    " Repair what it says, then start all of them again."
                )
            if row[:DIGEST].tobytes() != self.digest:
                raise CheckpointError(
                    f"RTPJ-3111 PROCESSES_DISAGREE: process {process} of {self.num_processes} loads"
                    f" other files than process {self.process}. Give all the same model folder."
                )
        self.is_over = False
        return came[:, DIGEST + WORDS :]

    def fail(self, error: BaseException) -> None:
        """Tell the others, who will meet us in their next round."""
        if not self.is_over:
            words = (str(error) or type(error).__name__).encode()[:WORDS]
            self.rows[:, DIGEST:][:, : len(words)] = np.frombuffer(words, np.uint8)
            self.rows[:, :DIGEST] = np.frombuffer(self.digest, np.uint8)
            self.is_over = True
            self.exchange.swap(self.rows)

    def finish(self) -> None:
        """See that all have come to the end."""
        self.swap()
        self.is_over = True


class Lanes:
    """The bytes on their way between this process and the others."""

    def __init__(self, link: Link, parts: Sequence[Sequence[Part]], placing: Placing):
        self.link, self.placing, self.delivered = link, placing, 0
        me, everybody = link.process, range(link.num_processes)

        def given(sender: int, part: Part) -> Given:
            counts = [
                0 if sender == process else sum(m.size for m in placing.messages(part, process))
                for process in everybody
            ]
            return Given(part.size, tuple(counts))

        lanes = [[given(sender, part) for part in parts[sender]] for sender in everybody]
        self.rounds = deque(rounds(lanes, link.capacity))
        self.outgoing: list[deque[np.ndarray]] = [deque() for _ in everybody]
        self.incoming = [
            _Incoming(m for part in parts[sender] for m in placing.messages(part, me))
            for sender in everybody
        ]

    def send(self, outgoing: dict[int, list[np.ndarray]]) -> None:
        """Take the bytes of the next part of this process, and hold the rounds that are due."""
        for process, arrays in outgoing.items():
            self.outgoing[process].extend(arrays)
        self.delivered += 1
        while self.rounds and self.rounds[0].after[self.link.process] <= self.delivered:
            self._hold(self.rounds.popleft())

    def finish(self) -> None:
        """Hold what rounds are left, and one more in which all see that all is well."""
        for left in self.rounds:
            self._hold(left)
        self.link.finish()

    def _hold(self, held: Round) -> None:
        me = self.link.process
        for process, count in enumerate(held.counts[me]):
            row = self.link.rows[process, DIGEST + WORDS :]
            _move(self.outgoing[process], row[:count])
        came = self.link.swap()
        for process, counts in enumerate(held.counts):
            for message, numbers in self.incoming[process].take(
                came[process, : counts[me]], self.placing
            ):
                for target, cut in self.placing.held.cuts(message.path, message.box):
                    target[...] = numbers[(*cut, ...)]
                    self.placing.held.has_come(message.path, target.size)


class _Incoming:
    """A lane to us: bytes become messages as they come."""

    def __init__(self, messages: Iterator[Message]):
        self.messages = messages
        self.message: Message | None = None  # of which `count` bytes have come
        self.memory, self.count = np.empty(0, BYTE), 0

    def take(self, came: np.ndarray, placing: Placing) -> Iterator[tuple[Message, np.ndarray]]:
        """Take some bytes; yield the messages that are complete."""
        while came.size:
            if self.message is None:
                self.message, self.count = next(self.messages), 0
                self.memory = aligned((self.message.size,), BYTE)
            some = came[: self.message.size - self.count]
            self.memory[self.count :][: some.size] = some
            self.count += some.size
            came = came[some.size :]
            if self.count == self.message.size:
                message, self.message = self.message, None
                placing.held.prepare(message.path)
                dtype = np.dtype(placing.held.described[message.path].dtype)
                yield message, self.memory.view(dtype).reshape(shape_of(message.box))


def _move(queue: deque[np.ndarray], row: np.ndarray) -> None:
    """Fill a row with the next bytes of a queue."""
    start = 0
    while start < row.size:
        some = queue[0][: row.size - start]
        row[start : start + some.size] = some
        start += some.size
        if some.size == queue[0].size:
            queue.popleft()
        else:
            queue[0] = queue[0][some.size :]
