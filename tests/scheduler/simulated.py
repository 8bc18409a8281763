"""A scheduler joined to a simulated runner as the engine joins them, and what it ought to say."""

from collections import deque
from collections.abc import Sequence as Listed
from dataclasses import replace

from rtp_jax.cache.hierarchy import Hierarchy, HierarchyOptions
from rtp_jax.cache.tiers.tier import Store
from rtp_jax.config import SchedulerConfig
from rtp_jax.constraints.token_masks import masks_of
from rtp_jax.request import Phase, Request, Sequence, StepPlan, StepResult, TokenOutput
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.admission import Limits, check_request
from rtp_jax.scheduler.scheduler import Scheduler
from rtp_jax.scheduler.tracked import Tracked, seed_of
from tests.scheduler.deferred import Deferred
from tests.scheduler.simulated_runner import (
    ENTRY,
    VOCAB,
    SimulatedRunner,
    digest_after,
    logprob,
    model,
)

LARGEST_COPY = 3  # pages, fewer than many prompts have


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
        stores: Listed[Store] = (),
        write_hits: int | None = None,
        staging_pages: int = 20,
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
        self.threads = Deferred()
        self.hierarchy = self._tiers(stores, page_size, write_hits, staging_pages)
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
            hierarchy=self.hierarchy,
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

    def _tiers(
        self, stores: Listed[Store], page_size: int, write_hits: int | None, staging_pages: int
    ) -> Hierarchy | None:
        if not stores:
            return None
        page_bytes = page_size * ENTRY.size
        options = HierarchyOptions(
            page_size=page_size,
            page_bytes=page_bytes,
            largest_copy=LARGEST_COPY,
            staging_bytes=staging_pages * page_bytes,
            write_hits=write_hits,
            load="always",
        )
        return Hierarchy(
            stores, options, stage=list, on_arrival=int, threads=lambda *_: self.threads
        )

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
        self.runner.move(self.scheduler.take_moves())
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
        self.threads.run(1)
        self.deliver(self.scheduler.expire(self.now_s))
        launched = self.launch(only)
        if self.in_flight and (not launched or len(self.in_flight) > self.ahead):
            self.commit()
        elif not launched and self.scheduler.has_work:
            assert self.scheduler.is_parked, "nothing advances"

    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()
        self.was_reset = True

    def run(self, most: int = 10_000) -> None:
        """Step until nothing is left."""
        for _ in range(most):
            if not (self.scheduler.has_work or self.in_flight or self.scheduler.has_moves):
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
        assert scheduler.num_running == scheduler.num_waiting == scheduler.num_parked == 0
        if self.hierarchy is not None:
            self.threads.run()
            assert self.hierarchy.is_idle
            assert self.hierarchy.bytes_on_their_way == 0

    def close(self) -> None:
        """End the threads of the tiers."""
        self.scheduler.close()
        if self.hierarchy is not None:
            self.hierarchy.close()


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
