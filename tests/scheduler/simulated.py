"""A runner without a device: pages as lists, a model as a hash, both strict.

Each page entry holds a token id, its position and a digest of all tokens up to it, which is what
KV depends on.  A row reads its whole context through its pages, as attention would, and every
entry must be the one that its sequence calls for; so a page that is freed too early, shared
wrongly or matched by mistake is found by the first row that reads it.
"""

from collections import deque
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from rtp_jax.config import SchedulerConfig
from rtp_jax.constraints.token_masks import masks_of
from rtp_jax.request import Phase, Request, Sequence, StepPlan, StepResult, StepRow, TokenOutput
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.admission import Limits, check_request
from rtp_jax.scheduler.scheduler import Scheduler
from rtp_jax.scheduler.tracked import Tracked, seed_of

VOCAB = 50
TOP = 3  # likeliest tokens that the model reports


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


class Simulation:
    """A scheduler and a simulated runner, joined as the engine joins them."""

    def __init__(
        self,
        *,
        num_pages: int = 30,
        page_size: int = 4,
        max_model_len: int = 64,
        prefix_caching: bool = True,
        ahead: int = 1,
        max_logit_rows: int | None = None,
        **options,
    ):
        config = SchedulerConfig(**({"max_num_seqs": 4, "max_num_batched_tokens": 16} | options))
        max_logit_rows = max_logit_rows or config.max_num_seqs
        self.limits = Limits(
            vocab_size=VOCAB,
            max_model_len=max_model_len,
            num_pages=num_pages,
            page_size=page_size,
        )
        self.scheduler = Scheduler(
            config,
            num_pages=num_pages,
            page_size=page_size,
            max_model_len=max_model_len,
            vocab_size=VOCAB,
            page_key=b"key",
            model_epoch="weights",
            kv_scheme="float32",
            prefix_caching=prefix_caching,
            max_logit_rows=max_logit_rows,
        )
        self.runner = SimulatedRunner(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=max_logit_rows,
            max_tokens=config.max_num_batched_tokens,
        )
        self.now_s = 0.0
        self.ahead = ahead  # steps in flight before the oldest is committed
        self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self.plans: list[StepPlan] = []
        self.outputs: dict[tuple[str, int], list[TokenOutput]] = {}
        self.expected: set[tuple[str, int]] = set()
        self.was_reset = False  # sequences may still share what the index has forgotten

    def add(self, request: Request) -> None:
        check_request(request, self.limits)
        self.scheduler.add(request, self.now_s)
        self.expected |= {(request.id, i) for i in range(request.params.n)}

    def launch(self, only: Sequence | None = None) -> bool:
        """Schedule and execute a step."""
        first = next(iter(self.scheduler._roster.running.copied()), None)
        may_grow = first is not None and _may_grow(first)
        plan = self.scheduler.schedule(self.now_s, only=only)
        if only is None and may_grow:
            assert plan is not None
            assert first.sequence in [row.sequence for row in plan.rows], "the first must advance"
        if plan is None:
            return False
        self.plans.append(plan)
        self.in_flight.append((plan, self.runner.execute(plan)))
        return True

    def commit(self) -> None:
        plan, result = self.in_flight.popleft()
        self.deliver(self.scheduler.commit(plan, result, self.now_s))

    def step(self, only: Sequence | None = None) -> None:
        """Do what the engine does in one turn."""
        self.now_s += 0.01
        self.deliver(self.scheduler.expire(self.now_s))
        launched = self.launch(only)
        if self.in_flight and (not launched or len(self.in_flight) > self.ahead):
            self.commit()
        else:
            assert launched or not self.scheduler.has_work, "nothing advances"

    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()
        self.was_reset = True

    def run(self, most: int = 10_000) -> None:
        """Step until nothing is left."""
        for _ in range(most):
            if not self.scheduler.has_work and not self.in_flight:
                return self.check_idle()
            self.step()
        raise AssertionError("it does not end")

    def deliver(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            key = output.request_id, output.index
            earlier = self.outputs.setdefault(key, [])
            assert not earlier or earlier[-1].finish_reason is None, f"{key} goes on after its end"
            earlier.append(output)

    def token_ids(self, request_id: str, index: int = 0) -> list[int]:
        return [
            token_id
            for output in self.outputs.get((request_id, index), [])
            for token_id in output.token_ids
        ]

    def last(self, request_id: str, index: int = 0) -> TokenOutput:
        return self.outputs[request_id, index][-1]

    def check(self) -> None:
        """Pages add up: each is free, evictable, or held by the sequences that list it."""
        scheduler = self.scheduler
        pool, index = scheduler._ledger.pool, scheduler._ledger.index
        pool.check()
        users = [0] * pool.num_pages
        running = scheduler._roster.running.copied()
        for tracked in running:
            assert tracked.sequence.phase is Phase.RUNNING
            for page in tracked.sequence.pages:
                users[page] += 1
        assert users == pool._num_users
        for page in range(1, pool.num_pages):
            indexed = page in index or self.was_reset
            assert users[page] < 2 or indexed, f"page {page} is shared but not indexed"
            assert bool(pool._remembered[page]) == (page in index)
        parents = {entry.key: entry.page for entry in index._by_key.values()}
        order = {page: at for at, page in enumerate(pool._evictable)}
        for entry in index._by_key.values():
            parent = parents.get(entry.parent)
            if parent in order:  # it goes after its children
                assert order[entry.page] < order[parent]
        assert pool.num_free + pool.num_evictable + pool.num_used == pool.num_pages - 1
        slots = [tracked.sequence.slot for tracked in running] + scheduler._roster.free_slots
        assert sorted(slots) == list(range(len(slots)))
        for tracked in scheduler._roster.waiting.copied():
            assert tracked.sequence.phase is Phase.WAITING
            assert tracked.sequence.pages == []

    def check_idle(self) -> None:
        """Nothing is left over when nothing lives."""
        self.check()
        scheduler = self.scheduler
        assert scheduler._ledger.pool.num_used == 0
        assert not scheduler._ledger._filling
        assert scheduler._roster.num_new == 0
        assert scheduler.num_running == scheduler.num_waiting == 0


def _may_grow(tracked: Tracked) -> bool:
    """Say whether a sequence needs nothing but pages, of which the first may have any."""
    sequence = tracked.sequence
    if sequence.num_computed < tracked.prefill_end:
        return True
    enough = len(sequence.output_ids) + sequence.num_in_flight >= tracked.max_output
    waits = sequence.num_in_flight > 0 and (tracked.lockstep or sequence.num_in_flight >= 2)
    return not enough and not waits


def request(
    request_id: str = "r",
    prompt: int | list[int] = 10,
    *,
    max_tokens: int = 8,
    stops: frozenset[int] = frozenset(),
    bad_word_ids: tuple[tuple[int, ...], ...] = (),
    cache_salt: str = "",
    priority: int = 0,
    deadline_s: float | None = None,
    seed: int = 7,
    **options,
) -> Request:
    """Make a request; a number as prompt stands for so many tokens of a fixed text."""
    ids = [(i * 7 + i // 5) % VOCAB for i in range(prompt)] if isinstance(prompt, int) else prompt
    params = SamplingParams(max_tokens=max_tokens, **options)
    return Request(
        id=request_id,
        prompt_token_ids=tuple(ids),
        params=params,
        seed=seed,
        stop_token_ids=stops | frozenset(params.stop_token_ids or ()),
        eos_token_ids=stops,
        bad_word_ids=bad_word_ids,
        max_tokens=max_tokens,
        priority=priority,
        deadline_s=deadline_s,
        cache_salt=cache_salt,
        reuse_prefix=params.prompt_logprobs is None,
    )


def alone(one: Request, index: int = 0) -> tuple[list[int], list[float] | None]:
    """Return output and prompt logprobs of a request that has an engine to itself."""
    simulation = Simulation(
        num_pages=64,
        max_model_len=128,
        prefix_caching=False,
        ahead=0,
        max_num_seqs=128,
        max_num_batched_tokens=256,
    )
    simulation.add(replace(one, deadline_s=None, priority=0))
    simulation.run()
    return simulation.token_ids(one.id, index), prompt_logprobs(simulation, one.id, index)


def oracle(one: Request, index: int = 0) -> list[int]:
    """Compute the output of a request from the model alone: no scheduler, no pages."""
    masks = masks_of(one, VOCAB)
    digest, ids = b"", []
    for token_id in one.prompt_token_ids:
        digest = digest_after(digest, token_id)
    while len(ids) < one.max_tokens:
        mask = masks.next_mask(len(ids), ids) if masks else None
        position = len(one.prompt_token_ids) + len(ids)
        ids.append(model(digest, seed_of(one.seed, index), position, mask))
        digest = digest_after(digest, ids[-1])
        if ids[-1] in one.stop_token_ids and len(ids) >= one.params.min_tokens:
            break
    return ids


def prompt_oracle(one: Request) -> list[tuple[int, float]]:
    """Compute the prompt logprobs of a request from the model alone."""
    digest, reports = digest_after(b"", one.prompt_token_ids[0]), []
    for token_id in one.prompt_token_ids[1:]:
        reports.append((token_id, logprob(digest, token_id)))
        digest = digest_after(digest, token_id)
    return reports


def prompt_logprobs(simulation: Simulation, request_id: str, index: int = 0) -> list | None:
    """Put together what was reported of a prompt."""
    reports = [
        (entry.token_id, entry.logprob)
        for output in simulation.outputs[request_id, index]
        for entry in output.prompt_logprobs or ()
    ]
    return reports or None
