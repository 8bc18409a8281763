"""A worker that computes nothing and takes as long as one that does.

It has what decides about times: paged KV with a prefix cache, continuous batching with prompts in
chunks beside what decodes, preemption, page events and loads.  What a step takes comes from
coefficients that were fitted to a real worker (`predictor.py`).  Tokens that it generates make no
reusable pages, for a trace does not say which later prompt holds them.  Read next: `simulator.py`.
"""

import collections
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from rtp_jax.router.facts import (
    EventKind,
    PageEvent,
    PageEvents,
    StepSample,
    Tier,
    WorkerFacts,
    WorkerLoad,
)
from rtp_jax.router.predictor import Terms, step_seconds

MOST_STEPS_REPORTED = 32
NOISE = 0.05  # standard deviation of a step's time, as a share of it


class SimulatedPages:
    """Pages of one worker: private ones, shared ones by key, and those only remembered."""

    def __init__(self, num_pages: int):
        self.num_free = num_pages
        self.num_users: dict[bytes, int] = {}
        self.remembered: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self.events: list[PageEvent] = []

    @property
    def num_available(self) -> int:
        """Pages that can be had: free ones, and remembered ones on demand."""
        return self.num_free + len(self.remembered)

    def match(self, keys: Sequence[bytes]) -> int:
        """Count the leading pages that are here."""
        here = itertools.takewhile(lambda k: k in self.num_users or k in self.remembered, keys)
        return sum(1 for _ in here)

    def share(self, keys: Sequence[bytes]) -> None:
        """Use pages that are here."""
        for key in keys:
            self.remembered.pop(key, None)
            self.num_users[key] = self.num_users.get(key, 0) + 1

    def take(self, number: int) -> bool:
        """Take private pages, the longest unused of the remembered ones if need be."""
        if number > self.num_available:
            return False
        while number > self.num_free:
            key, _ = self.remembered.popitem(last=False)
            self.events.append(PageEvent(EventKind.EVICTED, Tier.DEVICE, key))
            self.num_free += 1
        self.num_free -= number
        return True

    def publish(self, key: bytes) -> bool:
        """Give a private page an identity; False if there is a page with it already."""
        if key in self.num_users or key in self.remembered:
            return False
        self.num_users[key] = 1
        self.events.append(PageEvent(EventKind.INSERTED, Tier.DEVICE, key))
        return True

    def give_back(self, shared: Sequence[bytes], num_private: int) -> None:
        """End one use of shared pages, leaves first, so that they go first; free private ones."""
        for key in reversed(shared):
            self.num_users[key] -= 1
            if not self.num_users[key]:
                del self.num_users[key]
                self.remembered[key] = None
        self.num_free += num_private

    def bring(self, keys: Sequence[bytes]) -> None:
        """Take in pages that another worker computed, as far as there is room."""
        for key in keys[self.match(keys) :]:
            if not self.take(1):
                return
            self.publish(key)
            self.give_back([key], 0)


@dataclass(slots=True)
class SimulatedSequence:
    """One request at one worker."""

    request_id: str
    keys: Sequence[bytes]  # of the full pages of its prompt
    num_tokens: int  # prompt, and output of former workers
    num_left: int  # tokens to generate; 0: only prefill
    num_computed: int = 0
    num_reused: int = 0  # at its first admission
    num_generated: int = 0
    first_admission: bool = True
    shared: list[bytes] = field(default_factory=list)
    num_private: int = 0


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step brought: ids of requests."""

    tokens: tuple[str, ...]  # have one more token
    finished: tuple[SimulatedSequence, ...]


class SimulatedWorker:
    """One worker; the simulator calls `begin_step`, and `end_step` when its time has passed."""

    def __init__(self, facts: WorkerFacts, fit: Terms, *, seed: int):
        self.facts = facts
        self.fit = fit
        self.pages = SimulatedPages(facts.num_pages)
        self.waiting: collections.deque[SimulatedSequence] = collections.deque()
        self.running: list[SimulatedSequence] = []
        self.slowness = 1.0
        self.num_computed_tokens = 0  # prompt tokens, ever
        self.busy_s = 0.0
        self._random = random.Random(seed)
        self._plan: list[tuple[SimulatedSequence, int]] = []
        self._steps: list[StepSample] = []
        self._next_event = 1

    def submit(self, sequence: SimulatedSequence) -> None:
        """Take a request; one that could never have its pages would wait for ever."""
        most = (sequence.num_tokens + sequence.num_left) // self.facts.hashing.page_size + 1
        assert most <= self.facts.num_pages, f"{sequence} needs {most} pages"
        self.waiting.append(sequence)

    def begin_step(self) -> float | None:
        """Plan a step; return how long it takes, or None if there is nothing to do."""
        self._plan = self._decoding()
        budget = self.facts.max_num_batched_tokens - len(self._plan)
        prefilling = [s for s in self.running if s.num_computed < s.num_tokens]
        while budget > 0:
            sequence = prefilling.pop(0) if prefilling else self._admit()
            if sequence is None:
                break
            number = min(budget, sequence.num_tokens - sequence.num_computed)
            self._plan.append((sequence, number))
            budget -= number
        if not self._plan:
            return None
        decoding = sum(1 for s, _ in self._plan if s.num_computed >= s.num_tokens)
        prefill = sum(n for s, n in self._plan if s.num_computed < s.num_tokens)
        context = sum(s.num_computed + n for s, n in self._plan)
        seconds = step_seconds(self.fit, prefill=prefill, decoding=decoding, context=context)
        seconds *= self.slowness * max(0.5, self._random.gauss(1.0, NOISE))
        self._steps.append(StepSample(prefill, decoding, context, seconds))
        del self._steps[:-MOST_STEPS_REPORTED]
        self.num_computed_tokens += prefill
        self.busy_s += seconds
        return seconds

    def end_step(self) -> StepOutcome:
        """Commit the step that was begun."""
        tokens, finished = [], []
        for sequence, number in self._plan:
            sequence.num_computed += number
            self._publish(sequence)
            if sequence.num_computed < sequence.num_tokens:
                continue
            if sequence.num_left:
                tokens.append(sequence.request_id)
                sequence.num_generated += 1
                sequence.num_left -= 1
            if not sequence.num_left:
                finished.append(sequence)
                self.running.remove(sequence)
                self._free(sequence)
        self._plan = []
        return StepOutcome(tuple(tokens), tuple(finished))

    def load(self) -> WorkerLoad:
        """Say how busy it is, as a real worker does."""
        steps, self._steps = self._steps, []
        decoding = [s for s in self.running if s.num_computed >= s.num_tokens]
        behind = itertools.chain(self.waiting, self.running)
        return WorkerLoad(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_free_pages=self.pages.num_free,
            num_cached_pages=len(self.pages.remembered),
            prefill_tokens=sum(max(0, s.num_tokens - s.num_computed) for s in behind),
            decode_tokens=sum(s.num_computed for s in decoding),
            num_decoding=len(decoding),
            steps=steps,
        )

    def events(self) -> PageEvents | None:
        """Return what has happened to its pages since it was asked last."""
        events, self.pages.events = self.pages.events, []
        if not events:
            return None
        first, self._next_event = self._next_event, self._next_event + len(events)
        return PageEvents(first, events)

    def snapshot(self) -> PageEvents:
        """Return all pages it holds, as one event."""
        self.pages.events = []
        keys = [*self.pages.num_users, *self.pages.remembered]
        first, self._next_event = self._next_event, self._next_event + 1
        held = [PageEvent(EventKind.INSERTED, Tier.DEVICE, key) for key in keys]
        return PageEvents(first, held, snapshot=True)

    def _decoding(self) -> list[tuple[SimulatedSequence, int]]:
        """Give each sequence that decodes room for its next token; preempt the youngest if full."""
        size, plan = self.facts.hashing.page_size, []
        for sequence in list(self.running):
            if sequence.num_computed < sequence.num_tokens or sequence not in self.running:
                continue
            while len(sequence.shared) + sequence.num_private <= sequence.num_computed // size:
                if self.pages.take(1):
                    sequence.num_private += 1
                    continue
                youngest = self.running[-1]
                self._preempt(youngest)
                plan = [(s, n) for s, n in plan if s is not youngest]
                if youngest is sequence:
                    break
            else:
                plan.append((sequence, 1))
        return plan

    def _preempt(self, sequence: SimulatedSequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_tokens = max(sequence.num_tokens, sequence.num_computed + 1)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _admit(self) -> SimulatedSequence | None:
        if not self.waiting or len(self.running) >= self.facts.max_num_seqs:
            return None
        sequence, size = self.waiting[0], self.facts.hashing.page_size
        usable = sequence.keys[: (sequence.num_tokens - 1) // size]
        hits = self.pages.match(usable)
        self.pages.share(usable[:hits])
        needed = -(-(sequence.num_tokens + 1) // size) - hits
        if not self.pages.take(needed):
            self.pages.give_back(usable[:hits], 0)
            return None
        self.waiting.popleft()
        sequence.shared, sequence.num_private = list(usable[:hits]), needed
        sequence.num_computed = hits * size
        if sequence.first_admission:
            sequence.num_reused, sequence.first_admission = hits * size, False
        self.running.append(sequence)
        return sequence

    def _publish(self, sequence: SimulatedSequence) -> None:
        """Give the full pages that were computed their identities, the shared ones in one row."""
        full = min(sequence.num_computed // self.facts.hashing.page_size, len(sequence.keys))
        while len(sequence.shared) < full:
            key = sequence.keys[len(sequence.shared)]
            if not self.pages.publish(key):
                # Somebody computed the same page at the same time: use theirs.
                self.pages.share([key])
                self.pages.num_free += 1
            sequence.shared.append(key)
            sequence.num_private -= 1

    def _free(self, sequence: SimulatedSequence) -> None:
        self.pages.give_back(sequence.shared, sequence.num_private)
        sequence.shared, sequence.num_private = [], 0
