"""One worker as the router sees it: what it last said, and what was sent to it since.

A load is old as soon as it is read, so each request that was sent leaves a *reservation* of prefill
tokens, pages and a place in the batch, which counts until a load that was written later has it.
What a worker has still to prefill shrinks at its predicted speed until it says so itself.
Read next: `policies.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rtp_jax.router.facts import Ask, StepSample, WorkerFacts, WorkerLoad
from rtp_jax.router.predictor import Pace, StepFit, pace

IDLE = WorkerLoad(
    num_running=0,
    num_waiting=0,
    num_free_pages=0,
    num_cached_pages=0,
    prefill_tokens=0,
    decode_tokens=0,
    num_decoding=0,
)
REPORT_LAG_S = 0.005  # a load that arrives is this old at least


@dataclass(slots=True)
class Flight:
    """One request at a worker: at the one that decodes, or at one that may prefill for it."""

    ask: Ask
    worker_id: str
    prefill_tokens: int  # that it computes there
    num_pages: int  # that it needs there
    sent_s: float
    keys: list[int] = field(default_factory=list)  # pages that it is expected to compute
    started: bool = False
    in_load: bool = False  # a load of the worker has it


class _Known(NamedTuple):
    """What follows from a load, a fit and reservations."""

    pace: Pace
    step_s: float  # one step of what decodes
    said_s: float  # to prefill what the load says
    sent_s: float  # to prefill what was sent since
    num_busy: int


class WorkerView:
    """What is known of one worker."""

    def __init__(self, facts: WorkerFacts, pool: StepFit, now_s: float):
        self.facts = facts
        self.load = IDLE
        self.load_s = now_s
        self.reported = False
        self.num_free_pages = facts.num_pages
        self.fit = StepFit(pool)
        self.flights: dict[str, Flight] = {}
        self.outstanding_tokens = 0  # prompts and outputs to come, as a plain balancer counts
        self._prefill_tokens = 0  # of flights that no load has
        self._num_pages = 0
        self._num_flights = 0
        self._cache: _Known | None = None

    def report(self, load: WorkerLoad, now_s: float) -> None:
        """Take a load; steps are learned apart."""
        self.load, self.load_s, self.reported = load, now_s, True
        self._cache = None
        self.num_free_pages = load.num_free_pages + load.num_cached_pages
        for flight in self.flights.values():
            if not flight.in_load and flight.sent_s < now_s - REPORT_LAG_S:
                self._into_load(flight)

    def learn(self, steps: Sequence[StepSample]) -> None:
        """Learn how fast it is."""
        for step in steps:
            self.fit.learn(step)
        self._cache = None

    def send(self, flight: Flight, output_tokens: int) -> None:
        """Reserve what a request needs."""
        self.flights[flight.ask.request_id] = flight
        self.outstanding_tokens += flight.ask.num_tokens + output_tokens
        self._prefill_tokens += flight.prefill_tokens
        self._num_pages += flight.num_pages
        self._num_flights += 1
        self._cache = None

    def end(self, request_id: str, output_tokens: int) -> Flight | None:
        """Give back what a request reserved; `output_tokens` as it was sent."""
        flight = self.flights.pop(request_id, None)
        if flight is not None:
            self.outstanding_tokens -= flight.ask.num_tokens + output_tokens
            if not flight.in_load:
                self._into_load(flight)
        return flight

    @property
    def num_busy(self) -> int:
        """Sequences that run or wait there, those on their way included."""
        return self.load.num_running + self.load.num_waiting + self._num_flights

    @property
    def num_pages_left(self) -> int:
        """Pages that a new request can have without waiting; may be negative."""
        return self.num_free_pages - self._num_pages

    @property
    def pace(self) -> Pace:
        """How fast it prefills, beside what it last said to decode."""
        return self._known().pace

    def prefill_tokens(self, now_s: float) -> float:
        """Estimate what is to be computed there before a new request's first token."""
        known, said = self._known(), self.load.prefill_tokens
        share = max(0.0, 1 - (now_s - self.load_s) / known.said_s) if said else 0.0
        return said * share + self._prefill_tokens

    def wait_s(self, now_s: float, *, num_pages: int, output_tokens: float) -> float:
        """Predict how long a new request waits for its first step to begin.

        Args:
          now_s: the time.
          num_pages: that the request needs beyond those it finds.
          output_tokens: that a request generates, on average.
        """
        known = self._known()
        if not known.num_busy:
            return 0.0
        wait_s = known.step_s / 2 + known.sent_s  # half of the step that runs, and what was sent
        wait_s += max(0.0, known.said_s - (now_s - self.load_s))
        over = known.num_busy + 1 - self.facts.max_num_seqs
        missing = num_pages - self.num_pages_left
        if over > 0 or missing > 0:
            running = max(1, self.load.num_running)
            # Sequences end one after the other, evenly over the time that one of them takes.
            end_every_s = output_tokens * known.step_s / running
            wait_s += max(0, over) * end_every_s
            used = max(1.0, (self.facts.num_pages - self.num_free_pages) / running)
            wait_s += max(0.0, math.ceil(missing / used)) * end_every_s
        return wait_s

    def _known(self) -> _Known:
        """Work out what follows from load, fit and reservations, when one of them has changed."""
        if self._cache is None:
            load, fit = self.load, self.fit.coefficients
            own = pace(
                fit,
                budget=self.facts.max_num_batched_tokens,
                decoding=load.num_decoding,
                context=load.decode_tokens,
            )
            said_s = own.prefill_s(load.prefill_tokens, 0)
            sent_s = own.prefill_s(self._prefill_tokens, 0)
            self._cache = _Known(own, own.step_s, said_s, sent_s, self.num_busy)
        return self._cache

    def _into_load(self, flight: Flight) -> None:
        flight.in_load = True
        self._prefill_tokens -= flight.prefill_tokens
        self._num_pages -= flight.num_pages
        self._num_flights -= 1
        self._cache = None
