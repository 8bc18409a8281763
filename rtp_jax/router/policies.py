"""Who serves a request: four policies behind one protocol.

A policy picks one of the candidates that may decode, and says which others should prefill for it,
if any.  What surrounds it (quotas, fair order, sessions, full workers) is in `router.py`.  To add
one: a class with `pick`, a row in `POLICIES`, a run of `bench/routing.py`.

    round_robin    in turn; the yardstick
    least_tokens   fewest tokens outstanding, prompts and outputs
    affinity       the longest prefix it holds, unless it has far more to do than the idlest
    ttft           the shortest predicted time to first token (the default)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rtp_jax.router.facts import Ask
from rtp_jax.router.page_index import Held
from rtp_jax.router.worker_view import WorkerView

NO_PAGES = Held(0)
MAX_PREFILL_CANDIDATES = 3
TIE_S = 1e-4  # predictions that are closer than this are equal
LEARN_SEEN, LEARN_UNSEEN = 0.02, 0.002  # what one request moves the time of a page by
MOST_LATE = 10.0  # times the time of a page that one request may be late by
MIN_PAGE_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TtftSettings:
    """What `ttft` weighs; tuned on the first third of a trace (docs/routing.md)."""

    reuse: bool = True  # False: as if nobody held a page (an ablation)
    balance: bool = True  # False: as if nobody was busy (an ablation)
    work_weight: float = 1.0  # s of cost for each second that a request computes, beside its TTFT:
    # what it computes, those that come later wait for
    delay_weight: float = 0.1  # s of cost for each second that a sequence that decodes is delayed
    host_cost: float = 0.1  # a token read from the host, as a share of computing it
    disk_cost: float = 0.3
    transfer_page_s: float = 2e-3  # to move a page between workers, before it is measured


@dataclass(slots=True)
class Candidate:
    """A worker that could serve a request, and how much of the prompt it holds."""

    worker: WorkerView
    held: Held

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.worker.facts.id

    def reused_tokens(self, ask: Ask) -> int:
        """Count prompt tokens that need not be computed; the last one always is."""
        size = self.worker.facts.hashing.page_size
        return min(self.held.pages, (ask.num_tokens - 1) // size) * size


@dataclass(frozen=True, slots=True)
class Pick:
    """What a policy decided, and what it expects."""

    chosen: Candidate
    prefill: tuple[Candidate, ...]  # who may prefill for it, best first
    ttft_s: float
    cost_s: float = 0.0  # TTFT, and what it costs others


class Policy(Protocol):
    """Picks a worker; may keep state, but no clock and no randomness."""

    def pick(
        self, ask: Ask, decoders: Sequence[Candidate], prefillers: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Pick one of `decoders` (at least one is given), and who prefills for it."""
        ...


class RoundRobin:
    """Everybody in turn."""

    def __init__(self, predictor: "Ttft"):
        self._predictor = predictor
        self._decoder = self._prefiller = 0

    def pick(
        self, ask: Ask, decoders: Sequence[Candidate], prefillers: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Pick the next one."""
        chosen = decoders[self._decoder % len(decoders)]
        self._decoder += 1
        prefill = ()
        if prefillers:
            first = self._prefiller % len(prefillers)
            self._prefiller += 1
            prefill = (*prefillers[first:], *prefillers[:first])[:MAX_PREFILL_CANDIDATES]
        return self._predictor.expect(ask, chosen, prefill, now_s)


class LeastTokens:
    """Whoever has the fewest tokens to go."""

    def __init__(self, predictor: "Ttft"):
        self._predictor = predictor

    def pick(
        self, ask: Ask, decoders: Sequence[Candidate], prefillers: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Pick the least busy."""
        chosen = min(decoders, key=_outstanding)
        prefill = tuple(sorted(prefillers, key=_outstanding)[:MAX_PREFILL_CANDIDATES])
        return self._predictor.expect(ask, chosen, prefill, now_s)


class Affinity:
    """Whoever holds the longest prefix, within bounds."""

    def __init__(self, predictor: "Ttft", *, most_over: float = 1.5):
        self._predictor = predictor
        self._most_over = most_over

    def pick(
        self, ask: Ask, decoders: Sequence[Candidate], prefillers: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Pick the best prefix among those that are not far busier than the least busy."""
        chosen = self._best(ask, decoders)
        prefill = ()
        if prefillers:
            prefill = (self._best(ask, prefillers),)
        return self._predictor.expect(ask, chosen, prefill, now_s)

    def _best(self, ask: Ask, candidates: Sequence[Candidate]) -> Candidate:
        least = min(_outstanding(candidate) for candidate in candidates)
        bound = self._most_over * (least + ask.num_tokens)
        near = [candidate for candidate in candidates if _outstanding(candidate) <= bound]
        return max(near, key=lambda candidate: (candidate.held.pages, -_outstanding(candidate)))


class Ttft:
    """Whoever gives the first token soonest, as predicted, at the least cost to others."""

    def __init__(self, settings: TtftSettings = TtftSettings()):
        self.settings = settings
        self.transfer_page_s = settings.transfer_page_s
        self.output_tokens = 64.0  # of a request, on average
        self._turn = 0

    def learn_transfer(self, late_s: float | None) -> None:
        """Learn from one request how long pages travel.

        Args:
          late_s: how much later than predicted its first token came, for each page that it fetched;
            None: it fetched none.  What nobody measures is believed less and less, or one bad
            hour would keep requests from the hop for ever.
        """
        page_s = self.transfer_page_s
        if late_s is None:
            self.transfer_page_s += LEARN_UNSEEN * (self.settings.transfer_page_s - page_s)
        else:
            late_s = max(-page_s, min(late_s, MOST_LATE * page_s))
            self.transfer_page_s = max(MIN_PAGE_S, page_s + LEARN_SEEN * late_s)

    def pick(
        self, ask: Ask, decoders: Sequence[Candidate], prefillers: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Pick the cheapest pair, or the cheapest worker alone."""
        ranked = sorted(
            ((self._prefilled_s(ask, helper, now_s), i) for i, helper in enumerate(prefillers))
        )
        picks = []
        for candidate in decoders:
            pick = self.alone(ask, candidate, now_s)
            helpers = [(at_s, i) for at_s, i in ranked if _understands(candidate, prefillers[i])]
            if helpers := helpers[:MAX_PREFILL_CANDIDATES]:
                named = tuple(prefillers[i] for _, i in helpers)
                pair = self.paired(ask, candidate, named, helpers[0][0], now_s)
                pick = pair if pair.cost_s < pick.cost_s else pick
            picks.append(pick)
        least = min(pick.cost_s for pick in picks)
        equal = [pick for pick in picks if pick.cost_s <= least + TIE_S]
        if self.settings.balance:
            return min(equal, key=lambda pick: _outstanding(pick.chosen))
        self._turn += 1
        return equal[self._turn % len(equal)]

    def expect(
        self, ask: Ask, chosen: Candidate, prefill: Sequence[Candidate], now_s: float
    ) -> Pick:
        """Say what to expect of somebody else's pick; a prompt held to its end needs no helper."""
        size = chosen.worker.facts.hashing.page_size
        helpers = tuple(helper for helper in prefill if _understands(chosen, helper))
        if not helpers or chosen.reused_tokens(ask) >= (ask.num_tokens - 1) // size * size:
            return self.alone(ask, chosen, now_s)
        ready_s = self._prefilled_s(ask, helpers[0], now_s)
        return self.paired(ask, chosen, helpers, ready_s, now_s)

    def alone(self, ask: Ask, candidate: Candidate, now_s: float) -> Pick:
        """Predict a request that one worker serves."""
        wait_s = self._wait_s(ask, candidate, now_s)
        prefill_s = self._compute_s(ask, candidate)
        weights, decoding = self.settings, candidate.worker.load.num_decoding
        others = weights.work_weight + weights.delay_weight * decoding
        ttft_s = wait_s + prefill_s
        return Pick(candidate, (), ttft_s, ttft_s + others * prefill_s)

    def paired(
        self,
        ask: Ask,
        candidate: Candidate,
        helpers: tuple[Candidate, ...],
        prefilled_s: float,
        now_s: float,
    ) -> Pick:
        """Predict a request whose pages another worker computes, the first of `helpers`.

        Pages travel while later ones are computed, so the slower of the two counts, and the last
        page; then the rest of the prompt is computed where it decodes.
        """
        size = candidate.worker.facts.hashing.page_size
        full = (ask.num_tokens - 1) // size
        moved = max(0, full - candidate.held.pages)
        moved_s = moved * self.transfer_page_s
        rest_s = candidate.worker.pace.prefill_s(ask.num_tokens - full * size, full * size)
        wait_s = self._wait_s(ask, candidate, now_s)
        ttft_s = max(prefilled_s, wait_s, moved_s) + self.transfer_page_s + rest_s
        weights, decoding = self.settings, candidate.worker.load.num_decoding
        work_s = self._compute_s(ask, helpers[0])
        cost_s = ttft_s + weights.work_weight * work_s
        cost_s += (weights.work_weight + weights.delay_weight * decoding) * rest_s
        return Pick(candidate, helpers, ttft_s, cost_s)

    def _prefilled_s(self, ask: Ask, helper: Candidate, now_s: float) -> float:
        return self._wait_s(ask, helper, now_s) + self._compute_s(ask, helper)

    def _wait_s(self, ask: Ask, candidate: Candidate, now_s: float) -> float:
        if not self.settings.balance:
            return 0.0
        size = candidate.worker.facts.hashing.page_size
        num_pages = -(-ask.num_tokens // size) - candidate.held.pages
        output = min(self.output_tokens, ask.max_tokens)
        return candidate.worker.wait_s(now_s, num_pages=num_pages, output_tokens=output)

    def _compute_s(self, ask: Ask, candidate: Candidate) -> float:
        """Predict computing what is not held, and reading what a slower tier holds."""
        if not self.settings.reuse:
            return candidate.worker.pace.prefill_s(ask.num_tokens, 0)
        held, size = candidate.held, candidate.worker.facts.hashing.page_size
        reused = candidate.reused_tokens(ask)
        seconds = candidate.worker.pace.prefill_s(ask.num_tokens - reused, reused)
        if held.host or held.disk:
            read = held.host * self.settings.host_cost + held.disk * self.settings.disk_cost
            seconds += candidate.worker.fit.coefficients[1] * read * size
        return seconds


def _outstanding(candidate: Candidate) -> int:
    return candidate.worker.outstanding_tokens


def _understands(decoder: Candidate, helper: Candidate) -> bool:
    """Pages travel between equal layouts only, and mean the same if they are hashed alike."""
    ours, theirs = decoder.worker.facts, helper.worker.facts
    return ours.layout == theirs.layout and ours.hashing == theirs.hashing


POLICIES: dict[str, Callable[[Ttft], Policy]] = {
    "round_robin": RoundRobin,
    "least_tokens": LeastTokens,
    "affinity": Affinity,
    "ttft": lambda predictor: predictor,
}
