"""What would a policy do to a service?  The router that serves, over workers that only take time.

    result = Simulation(Router(settings), workers, requests).run()
    percentile([s.ttft_s for s in result.served], 0.95)

One heap of events; each is a moment and a function.  Loads and page events reach the router late
and only now and then, as they do in reality.  Faults kill workers, stop them or slow them down; a
request whose worker is gone asks again with the tokens it has, as `serving/` does it.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rtp_jax.router.facts import Ask, Choice, PageHashing, Refusal, Wait
from rtp_jax.router.router import Router
from rtp_jax.router.simulated_worker import SimulatedSequence, SimulatedWorker

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a trace."""

    id: str
    at_s: float
    keys: tuple[bytes, ...]  # identities of the full pages of its prompt
    num_tokens: int
    num_output_tokens: int
    max_tokens: int  # what the router is told
    priority: int = 0
    tenant: str = ""
    session: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a worker, and for how long."""

    at_s: float
    kind: str  # kill: gone, and back empty; stop: no step ends; slow: steps take `factor` times
    worker: str
    for_s: float
    factor: float = 4.0


@dataclass(slots=True)
class Served:
    """What became of a request."""

    request: SimulatedRequest
    ttft_s: float = -1.0
    ended_s: float = -1.0
    predicted_ttft_s: float = -1.0  # router's wait not included
    placed_s: float = -1.0
    num_tokens: int = 0  # that arrived
    reused_tokens: int = 0
    num_attempts: int = 0
    refusal: str = ""  # id of the error
    avoid: frozenset[str] = frozenset()
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """How late things are."""

    delay_s: float = 0.001  # one way
    report_s: float = 0.05  # between two loads of a worker
    detect_s: float = 0.05  # until the death of a worker is known
    transfer_page_s: float = 0.002  # a page between workers


@dataclass(slots=True)
class _Site:
    """A worker and what the simulation knows of it."""

    worker: SimulatedWorker
    stepping: bool = False
    stopped_until_s: float = 0.0
    reported_s: float = -1e9
    report_due: bool = False
    life: int = 0
    helping: dict[str, Choice] = field(default_factory=dict)  # prefills for others


class Simulation:
    """Replays requests; `served` has each of them in order."""

    def __init__(
        self,
        router: Router,
        workers: Sequence[SimulatedWorker],
        requests: Sequence[SimulatedRequest],
        *,
        faults: Sequence[Fault] = (),
        network: Network = Network(),
        revive: Callable[[SimulatedWorker], SimulatedWorker] | None = None,
    ):
        self.router = router
        self.network = network
        self.now_s = 0.0
        self.served = [Served(request) for request in requests]
        self._of = {served.request.id: served for served in self.served}
        self._sites = {worker.facts.id: _Site(worker) for worker in workers}
        self._sequences: dict[str, SimulatedSequence] = {}
        self._revive = revive
        self._poll_due = False
        self._heap: list[tuple[float, int, Callable, tuple]] = []
        self._count = itertools.count()
        self._num_open = len(self.served)
        for site in self._sites.values():
            self._join(site)
        for served in self.served:
            self._at(served.request.at_s, self._arrive, served)
        for fault in faults:
            self._at(fault.at_s, self._strike, fault)

    def run(self) -> "Simulation":
        """Go on until every request has ended."""
        while self._num_open:
            self.now_s, _, act, arguments = heapq.heappop(self._heap)
            act(*arguments)
        return self

    def _at(self, at_s: float, act: Callable, *arguments: object) -> None:
        heapq.heappush(self._heap, (at_s, next(self._count), act, arguments))

    def _after(self, delay_s: float, act: Callable, *arguments: object) -> None:
        self._at(self.now_s + delay_s, act, *arguments)

    # Requests.

    def _arrive(self, served: Served) -> None:
        request = served.request
        ask = Ask(
            request_id=request.id,
            num_tokens=request.num_tokens + served.num_tokens,
            keys=self._keys(request),
            max_tokens=request.max_tokens - served.num_tokens,
            priority=request.priority,
            tenant=request.tenant,
            session=request.session,
            arrival_s=request.at_s,
            deadline_s=request.deadline_s,
            avoid=served.avoid,
        )
        answer = self.router.ask(ask, self.now_s)
        if not isinstance(answer, Wait):
            self._answered(answer)
        self._poll_later()

    def _keys(self, request: SimulatedRequest) -> dict[PageHashing, Sequence[bytes]]:
        return dict.fromkeys(self.router.hashings, request.keys)

    def _poll_later(self) -> None:
        if self.router.num_waiting and not self._poll_due:
            self._poll_due = True
            self._after(POLL_S, self._poll)

    def _poll(self) -> None:
        self._poll_due = False
        for answer in self.router.poll(self.now_s):
            self._answered(answer)
        self._poll_later()

    def _answered(self, answer: Choice | Refusal) -> None:
        served = self._of[answer.request_id]
        if isinstance(answer, Refusal):
            served.refusal, served.ended_s = answer.error.id, self.now_s
            self._num_open -= 1
            return
        served.num_attempts += 1
        served.placed_s, served.worker = self.now_s, answer.worker
        if served.ttft_s < 0:
            served.predicted_ttft_s = answer.ttft_s
        self._after(self.network.delay_s, self._deliver, served, answer, served.num_attempts)

    def _deliver(self, served: Served, choice: Choice, attempt: int) -> None:
        """Hand a request to its worker, or first to one that prefills for it."""
        if served.num_attempts != attempt or served.ended_s >= 0:
            return
        helper = next((self._sites[w] for w in choice.prefill if w in self._sites), None)
        if helper is None:
            self._begin(served, choice, attempt)
            return
        size, request = helper.worker.facts.hashing.page_size, served.request
        keys = request.keys[: (request.num_tokens - 1) // size]
        helper.helping[request.id] = choice
        helper.worker.submit(SimulatedSequence(request.id, keys, len(keys) * size, 0))
        self._step(helper)

    def _begin(self, served: Served, choice: Choice, attempt: int) -> None:
        if served.num_attempts != attempt or served.ended_s >= 0:
            return
        site, request = self._sites.get(choice.worker), served.request
        if site is None:
            return  # it died meanwhile, which `_lost` tells the router
        sequence = SimulatedSequence(
            request.id,
            request.keys,
            request.num_tokens + served.num_tokens,
            request.num_output_tokens - served.num_tokens,
        )
        site.worker.submit(sequence)
        self._step(site)

    # Workers.

    def _join(self, site: _Site) -> None:
        facts = site.worker.facts
        self._again(facts.id, self.router.add_worker(facts, self.now_s))
        self.router.report(facts.id, site.worker.load(), self.now_s)
        self.router.events(facts.id, site.worker.snapshot())

    def _step(self, site: _Site) -> None:
        if site.stepping:
            return
        seconds = site.worker.begin_step()
        if seconds is not None:
            site.stepping = True
            begun_s = max(self.now_s, site.stopped_until_s)
            self._at(begun_s + seconds, self._stepped, site, site.life)
        self._report(site)

    def _stepped(self, site: _Site, life: int) -> None:
        if site.life != life:
            return
        if self.now_s < site.stopped_until_s:
            self._at(site.stopped_until_s, self._stepped, site, life)
            return
        outcome = site.worker.end_step()
        site.stepping = False
        for sequence in outcome.finished:
            choice = site.helping.pop(sequence.request_id, None)
            if choice is not None:
                self._helped(sequence, choice)
        finished = {sequence.request_id: sequence for sequence in outcome.finished}
        for request_id in outcome.tokens:
            self._token(self._of[request_id], finished.get(request_id))
        self._poll_now(bool(finished))
        self._step(site)

    def _token(self, served: Served, ended: SimulatedSequence | None) -> None:
        if not served.num_tokens:
            served.ttft_s = self.now_s + self.network.delay_s - served.request.at_s
        self.router.started(served.request.id, self.now_s)
        served.num_tokens += 1
        if ended is not None:
            served.reused_tokens = ended.num_reused
            served.ended_s = self.now_s + self.network.delay_s
            self._num_open -= 1
            count = served.num_tokens
            self.router.finished(served.request.id, self.now_s, num_output_tokens=count)

    def _helped(self, sequence: SimulatedSequence, choice: Choice) -> None:
        """Move the pages that a worker has computed for another; the last one comes last."""
        served, site = self._of[sequence.request_id], self._sites.get(choice.worker)
        attempt = served.num_attempts
        if site is not None:
            site.worker.pages.bring(sequence.keys)
            served.reused_tokens = sequence.num_reused
        self._after(self.network.transfer_page_s, self._begin, served, choice, attempt)

    def _poll_now(self, ended: bool) -> None:
        if ended and self.router.num_waiting:
            for answer in self.router.poll(self.now_s):
                self._answered(answer)

    def _report(self, site: _Site) -> None:
        """Send a load and events, at most once a period."""
        due_s = site.reported_s + self.network.report_s
        if site.report_due:
            return
        site.report_due = True
        self._at(max(self.now_s, due_s), self._send_report, site, site.life)

    def _send_report(self, site: _Site, life: int) -> None:
        if site.life != life:
            return
        if self.now_s < site.stopped_until_s:
            self._at(site.stopped_until_s, self._send_report, site, life)
            return
        site.report_due, site.reported_s = False, self.now_s
        reports = site.worker.load(), site.worker.events()
        self._after(self.network.delay_s, self._hear, site, life, *reports)

    def _hear(self, site: _Site, life: int, load, events) -> None:
        if site.life == life:
            facts = site.worker.facts
            self.router.report(facts.id, load, self.now_s)
            if events is not None:
                self.router.events(facts.id, events)

    # Faults.

    def _strike(self, fault: Fault) -> None:
        site = self._sites.get(fault.worker)
        if site is None:
            return
        if fault.kind == "kill":
            self._kill(site, fault)
        elif fault.kind == "stop":
            site.stopped_until_s = self.now_s + fault.for_s
        else:
            site.worker.slowness = fault.factor
            self._after(fault.for_s, self._recover, site)

    def _recover(self, site: _Site) -> None:
        site.worker.slowness = 1.0

    def _kill(self, site: _Site, fault: Fault) -> None:
        site.life += 1
        del self._sites[fault.worker]
        for request_id, choice in site.helping.items():  # who waits for its pages computes them
            self._begin(self._of[request_id], choice, self._of[request_id].num_attempts)
        self._after(self.network.detect_s, self._lost, fault.worker)
        if self._revive is not None:
            self._after(fault.for_s, self._come_back, self._revive(site.worker))

    def _lost(self, worker_id: str) -> None:
        if worker_id not in self._sites:  # else another life of it has been heard of
            self._again(worker_id, self.router.remove_worker(worker_id, self.now_s))

    def _again(self, worker_id: str, lost: Sequence[str]) -> None:
        """Ask for another worker for requests that one has lost."""
        for request_id in lost:
            served = self._of[request_id]
            served.avoid |= {worker_id}
            served.num_attempts += 1  # what is on its way to the dead one is void
            self._arrive(served)

    def _come_back(self, worker: SimulatedWorker) -> None:
        site = _Site(worker)
        self._sites[worker.facts.id] = site
        self._join(site)


def revived(worker: SimulatedWorker) -> SimulatedWorker:
    """Begin another life of a worker, with empty pages."""
    facts = replace(worker.facts, epoch=worker.facts.epoch + "'")
    return SimulatedWorker(facts, worker.fit, seed=len(facts.epoch))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the others lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
