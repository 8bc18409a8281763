"""A runner without a device: pages as lists, a model as a hash, both strict.

Each page entry holds a token id, its position and a digest of all tokens up to it, which is what
KV depends on.  A row reads its whole context through its pages, as attention would, and every
entry must be the one that its sequence calls for; so a page that is freed too early, shared
wrongly or matched by mistake is found by the first row that reads it.
"""

import struct
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from rtp_jax.page_record import PageMoves, record_of
from rtp_jax.request import StepPlan, StepResult, StepRow

VOCAB = 50
TOP = 3  # likeliest tokens that the model reports
ENTRY = struct.Struct("<II8s")  # a token in the payload of a page


class Entry(NamedTuple):
    """KV of one token."""

    token_id: int
    position: int
    digest: bytes  # of the tokens from the first to this one


def digest_after(before: bytes, token_id: int) -> bytes:
    return blake2b(before + token_id.to_bytes(4, "little"), digest_size=8).digest()


def model(digest: bytes, seed: int, position: int, mask: np.ndarray | None) -> int:
    """Choose the token at a position, given all before it."""
    source = digest + seed.to_bytes(4, "little") + position.to_bytes(4, "little")
    number = int.from_bytes(blake2b(source, digest_size=8).digest(), "little")
    ids = [i for i in range(VOCAB) if mask is None or mask[i // 32] >> (i % 32) & 1]
    return ids[number % len(ids)]


def logprob(digest: bytes, token_id: int) -> float:
    return -float(digest_after(digest, token_id)[0])


class SimulatedRunner:
    """Executes plans at once, in the order in which they come."""

    def __init__(self, *, num_pages: int, page_size: int, num_slots: int, max_tokens: int):
        self.page_size = page_size
        self._shape = num_pages, page_size
        self._max_tokens, self._num_slots = max_tokens, num_slots
        self.poisoned: set[str] = set()  # requests whose logits are NaN
        self.reset()

    def reset(self) -> None:
        num_pages, page_size = self._shape
        self._pages: list[list[Entry | None]] = [[None] * page_size for _ in range(num_pages)]
        self._table: list[list[int]] = [[] for _ in range(self._num_slots)]
        self._newest = [-1] * self._num_slots  # token that each slot sampled last

    def move(self, moves: PageMoves) -> None:
        """Copy pages out and in, in this order; only whole pages are worth a record."""
        for read in moves.reads:
            entries = self._pages[read.page]
            assert None not in entries, f"page {read.page} is read before it is full"
            payload = b"".join(ENTRY.pack(*entry) for entry in entries if entry is not None)
            ids = struct.unpack(f"<{self.page_size}I", read.packed)
            assert ids == tuple(entry.token_id for entry in entries if entry is not None)
            read.sink(record_of(read.key, read.parent, read.packed, payload))
        for write in moves.writes:
            for page, payload in zip(write.pages, write.staged, strict=True):
                if page:
                    self._pages[page] = [Entry(*fields) for fields in ENTRY.iter_unpack(payload)]

    def execute(self, plan: StepPlan) -> StepResult:
        """Run a step; what it computes is visible to itself only within each row."""
        assert 0 < plan.num_tokens <= self._max_tokens
        assert 0 < len({row.slot for row in plan.rows}) == len(plan.rows) <= self._num_slots
        written: dict[tuple[int, int], Entry] = {}
        ids: list[int] = []
        logprobs: list[float] = []
        failed: set[int] = set()
        chains = [self._write(row, written) for row in plan.rows]
        for row, chain in zip(plan.rows, chains, strict=True):
            if row.sequence.request.id in self.poisoned:
                failed |= set(range(len(ids), len(ids) + row.num_logit_rows))
            self._sample(row, chain, ids, logprobs)
        for (page, offset), entry in written.items():
            self._pages[page][offset] = entry
        assert len(ids) == plan.num_logit_rows <= self._num_slots
        top = np.tile(np.arange(20, dtype=np.int32), (len(ids), 1))
        return StepResult(
            np.array(ids, np.int32),
            np.array(logprobs, np.float32),
            np.ones(len(ids), np.int32),
            top,
            -top.astype(np.float32),
            -np.tile(np.arange(128, dtype=np.float32), (len(ids), 1)),
            frozenset(failed),
        )

    def _write(self, row: StepRow, written: dict[tuple[int, int], Entry]) -> list[bytes]:
        """Write a row's tokens; return the digest after each token of its sequence so far."""
        self._learn_pages(row)
        digests = [b""]
        for position in range(row.start):
            page, offset = divmod(position, self.page_size)
            entry = self._pages[row.pages[page]][offset]
            assert entry is not None, f"{row} reads position {position}, which is not written"
            assert entry.position == position
            assert entry.digest == digest_after(digests[-1], entry.token_id)
            digests.append(entry.digest)
        self._check_known(row, digests)
        ids = [self._newest[row.slot]] if row.token_ids is None else row.token_ids
        assert len(ids) == row.count
        for position, token_id in enumerate(ids, row.start):
            digests.append(digest_after(digests[-1], token_id))
            page, offset = divmod(position, self.page_size)
            place = row.pages[page], offset
            assert place not in written, f"two rows write to {place}"
            assert place[0] != 0
            written[place] = Entry(token_id, position, digests[-1])
        return digests

    def _learn_pages(self, row: StepRow) -> None:
        if row.admits:
            self._table[row.slot] = []
        assert len(self._table[row.slot]) == row.first_new_page
        self._table[row.slot] += row.pages[row.first_new_page :]
        assert self._table[row.slot] == row.pages
        assert row.start + row.count <= len(row.pages) * self.page_size
        assert len(set(row.pages)) == len(row.pages)

    def _check_known(self, row: StepRow, digests: list[bytes]) -> None:
        """What was read is what the sequence is made of, as far as the host knows."""
        digest = b""
        for token_id, read in zip(row.sequence.known_ids(0, row.start), digests[1:], strict=False):
            digest = digest_after(digest, token_id)
            assert digest == read, f"{row} reads the page of another sequence"

    def _sample(
        self, row: StepRow, digests: list[bytes], ids: list[int], logprobs: list[float]
    ) -> None:
        for position in range(row.start + row.count - row.num_logit_rows, row.start + row.count):
            digest = digests[position + 1]
            if row.samples and position == row.start + row.count - 1:
                token_id = model(digest, row.sequence.seed, position + 1, row.mask)
                self._newest[row.slot] = token_id
            else:
                token_id = row.sequence.request.prompt_token_ids[position + 1]
            ids.append(token_id)
            logprobs.append(logprob(digest, token_id))
