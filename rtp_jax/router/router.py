"""The router's mind: told of workers, loads, pages and requests, it says who serves whom.

    router = Router(RouterSettings(policy="ttft"))
    router.add_worker(facts, now_s)             # again with another role or epoch
    router.report(worker_id, load, now_s)
    in_order = router.events(worker_id, events)      # False: a gap, watch the worker anew
    answer = router.ask(ask, now_s)             # Choice, Wait or Refusal
    router.started(request_id, now_s)           # its first token came
    router.finished(request_id, now_s, num_output_tokens=n)   # or was given up; waiting ones too
    router.failed(request_id, now_s)            # its worker died or refused; ask again
    for answer in router.poll(now_s): ...       # after each of these, and every 20 ms while
                                                # `num_waiting`: Choices and Refusals of the waiting
    router.remove_worker(worker_id, now_s)      # ids of requests that were there

Read next: `policies.py`.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass

from rtp_jax.errors import RtpError
from rtp_jax.router.facts import (
    Answer,
    Ask,
    Choice,
    PageEvents,
    PageHashing,
    Refusal,
    Role,
    Wait,
    WorkerFacts,
    WorkerLoad,
)
from rtp_jax.router.fair_queue import FairQueue
from rtp_jax.router.page_index import Held, PageIndex, shortened
from rtp_jax.router.policies import NO_PAGES, POLICIES, Candidate, Pick, Ttft
from rtp_jax.router.predictor import StepFit
from rtp_jax.router.refusals import full, no_worker, quota_spent, too_late
from rtp_jax.router.settings import RouterSettings
from rtp_jax.router.worker_view import Flight, WorkerView

AVERAGE = 0.02  # what one request moves an average by


@dataclass(slots=True)
class _Sent:
    """A request that workers have."""

    ask: Ask
    choice: Choice
    sent_s: float
    output_tokens: int  # as they were counted
    moved_pages: int  # that its worker fetches from another
    started: bool = False


class Router:
    """Decides for one model; owned by one thread."""

    def __init__(self, settings: RouterSettings = RouterSettings()):
        self.settings = settings
        self.index = PageIndex(settings.max_known_pages)
        self.predictor = Ttft(settings.ttft)
        self.ttft_error = 0.0  # |actual / predicted - 1|, an average
        self._policy = POLICIES[settings.policy](self.predictor)
        self._pool_fit = StepFit()
        self._views: dict[str, WorkerView] = {}
        self._queue = FairQueue(settings.quotas)
        self._keys: dict[str, dict[PageHashing, list[int]]] = {}  # of all requests that are here
        self._sent: dict[str, _Sent] = {}
        self._sessions: collections.OrderedDict[tuple[str, str], str] = collections.OrderedDict()
        self._outbox: list[Choice | Refusal] = []
        self._none_since_s: float | None = None
        self._last_end_s: float | None = None
        self._end_every_s = 0.1  # on average

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return len(self._queue) + len(self._outbox)

    @property
    def num_in_flight(self) -> int:
        """Requests that workers have."""
        return len(self._sent)

    @property
    def workers(self) -> Mapping[str, WorkerView]:
        """Every worker by its id, to be looked at."""
        return self._views

    @property
    def hashings(self) -> set[PageHashing]:
        """How pages are identified: an `Ask` has keys for each of these."""
        return {view.facts.hashing for view in self._views.values() if view.facts.prefix_caching}

    def add_worker(self, facts: WorkerFacts, now_s: float) -> list[str]:
        """Take a worker in, or learn its new role or epoch.

        Returns:
          Ids of requests that a former life of it was serving: they have failed.
        """
        view = self._views.get(facts.id)
        if view is not None and view.facts.epoch == facts.epoch:
            view.facts = facts
            return []
        lost = self.remove_worker(facts.id, now_s)
        self._views[facts.id] = WorkerView(facts, self._pool_fit, now_s)
        self.index.open(facts.id)
        return lost

    def remove_worker(self, worker_id: str, now_s: float) -> list[str]:
        """Forget a worker; return the ids of requests it was serving, which have failed."""
        if worker_id not in self._views:
            return []
        lost = [id for id, sent in self._sent.items() if sent.choice.worker == worker_id]
        for request_id in lost:
            self.failed(request_id, now_s)
        del self._views[worker_id]
        self.index.close(worker_id)
        return lost

    def report(self, worker_id: str, load: WorkerLoad, now_s: float) -> None:
        """Learn how busy a worker is, and from its steps how fast."""
        if view := self._views.get(worker_id):
            view.report(load, now_s)
            view.learn(load.steps)
            for step in load.steps:
                self._pool_fit.learn(step)

    def events(self, worker_id: str, events: PageEvents) -> bool:
        """Learn what a worker's pages hold; return False if events before these are missing."""
        return worker_id in self._views and self.index.apply(worker_id, events)

    def next_event(self, worker_id: str) -> int:
        """Return the number of the event to go on with, or 0 if a snapshot is wanted."""
        return self.index.next_event(worker_id)

    def ask(self, ask: Ask, now_s: float) -> Answer:
        """Choose a worker, or let the request wait, or refuse it."""
        assert ask.request_id not in self._sent, f"{ask.request_id} is with a worker"
        assert ask.request_id not in self._queue, f"{ask.request_id} waits already"
        if ask.deadline_s is not None and ask.deadline_s <= now_s:
            return Refusal(ask.request_id, too_late(ask, now_s))
        cost = ask.num_tokens + min(ask.max_tokens, self.predictor.output_tokens)
        if not ask.avoid:  # one that is sent again has been charged
            over_s = self._queue.over_rate_s(ask, ask.num_tokens + ask.max_tokens, now_s)
            if over_s is not None:
                return Refusal(ask.request_id, quota_spent(ask, self.settings, over_s))
        self._keys[ask.request_id] = {h: shortened(keys) for h, keys in ask.keys.items()}
        self._queue.push(ask, cost, now_s)
        self._release(now_s)
        if len(self._queue) > self.settings.max_waiting:
            last = self._queue.last()
            self._refuse(
                last, full(len(self._queue), len(self._sent), self.settings, self._retry_s())
            )
            self._queue.remove(last.request_id)
        for answer in self._outbox:
            if answer.request_id == ask.request_id:
                self._outbox.remove(answer)
                return answer
        return Wait(ask.request_id, len(self._queue) - 1)

    def started(self, request_id: str, now_s: float) -> None:
        """Take note of a request's first token."""
        sent = self._sent.get(request_id)
        if sent is None or sent.started:
            return
        sent.started = True
        for worker_id in (sent.choice.worker, *sent.choice.prefill[:1]):
            view = self._views.get(worker_id)
            flight = view.flights.get(request_id) if view else None
            if flight is not None:
                flight.started = True
                self.index.withdraw(worker_id, flight.keys)
        took_s, said_s = now_s - sent.sent_s, max(sent.choice.ttft_s, 1e-3)
        self.ttft_error += AVERAGE * (min(abs(took_s / said_s - 1), 10.0) - self.ttft_error)
        if not sent.choice.prefill:
            self.predictor.learn_transfer(None)
            return
        if sent.moved_pages:
            self.predictor.learn_transfer((took_s - sent.choice.ttft_s) / sent.moved_pages)
        for worker_id in sent.choice.prefill[:1]:  # who helped has nothing more to do
            self._end_flight(worker_id, sent)

    def finished(self, request_id: str, now_s: float, *, num_output_tokens: int) -> None:
        """Forget a request: it ended, or was cancelled, at a worker or while it waited here."""
        if self._end(request_id) is None:
            return
        if num_output_tokens:
            average = self.predictor.output_tokens
            self.predictor.output_tokens += AVERAGE * (num_output_tokens - average)
        if self._last_end_s is not None:
            self._end_every_s += AVERAGE * (now_s - self._last_end_s - self._end_every_s)
        self._last_end_s = now_s

    def failed(self, request_id: str, now_s: float) -> None:
        """Forget that a request was sent, since its worker did not take it or died."""
        self._end(request_id)

    def poll(self, now_s: float) -> list[Choice | Refusal]:
        """Release requests that waited: fair among tenants, by priority within one."""
        self._release(now_s)
        answers, self._outbox = self._outbox, []
        return answers

    def _release(self, now_s: float) -> None:
        for ask in self._queue.expired(now_s):
            self._refuse(ask, too_late(ask, now_s))
        if not self._decoders(now_s, frozenset()):
            self._refuse_all(now_s)
            return
        self._none_since_s = None
        while (ask := self._queue.first()) is not None:
            pick = self._place(ask, now_s)
            if pick is None:
                return
            self._queue.serve(ask)
            self._outbox.append(self._send(ask, pick, now_s))

    def _refuse_all(self, now_s: float) -> None:
        """Refuse all that wait, if nobody has come to serve them for long."""
        if self._none_since_s is None:
            self._none_since_s = now_s
        if now_s - self._none_since_s < self.settings.no_worker_s:
            return
        for ask in list(self._queue.asks()):
            self._queue.remove(ask.request_id)
            self._refuse(ask, no_worker(len(self._views), self.settings))

    def _refuse(self, ask: Ask, error: RtpError) -> None:
        del self._keys[ask.request_id]
        self._outbox.append(Refusal(ask.request_id, error))

    def _decoders(self, now_s: float, avoid: frozenset[str]) -> list[WorkerView]:
        views = [v for v in self._views.values() if v.facts.role != Role.PREFILL]
        return self._sound(views, now_s, avoid)

    def _sound(
        self, views: list[WorkerView], now_s: float, avoid: frozenset[str]
    ) -> list[WorkerView]:
        """Leave out who drains; who is silent or has failed the request too, if others are left."""
        views = [view for view in views if not view.load.draining]
        heard = [v for v in views if now_s - v.load_s < self.settings.stale_s] or views
        return [view for view in heard if view.facts.id not in avoid] or heard

    def _place(self, ask: Ask, now_s: float) -> Pick | None:
        """Pick a worker; None: the request had better wait here."""
        views = self._decoders(now_s, ask.avoid)
        views = [view for view in views if view.num_busy < view.facts.max_num_seqs]
        if not views:
            return None
        helpers = [
            view
            for view in self._views.values()
            if view.facts.role == Role.PREFILL and view.facts.kv_address
        ]
        helpers = self._sound(helpers, now_s, ask.avoid)
        held: dict[str, Held] = {}
        for keys in self._keys[ask.request_id].values():
            held |= self.index.match(keys)
        decoders = [Candidate(view, held.get(view.facts.id, NO_PAGES)) for view in views]
        prefillers = [Candidate(view, held.get(view.facts.id, NO_PAGES)) for view in helpers]
        pick = self._policy.pick(ask, decoders, prefillers, now_s)
        pick = self._of_session(ask, decoders, pick, now_s)
        wait_s = pick.chosen.worker.wait_s(
            now_s, num_pages=0, output_tokens=self.predictor.output_tokens
        )
        return pick if wait_s <= self.settings.max_worker_wait_s else None

    def _of_session(self, ask: Ask, decoders: list[Candidate], pick: Pick, now_s: float) -> Pick:
        """Prefer the worker that a session knows, if it is not much slower."""
        known = self._sessions.get((ask.tenant, ask.session)) if ask.session else None
        if known is None or known == pick.chosen.id:
            return pick
        for candidate in decoders:
            if candidate.id == known:
                own = self.predictor.alone(ask, candidate, now_s)
                return (
                    own if own.ttft_s <= pick.ttft_s * (1 + self.settings.session_slack) else pick
                )
        return pick

    def _send(self, ask: Ask, pick: Pick, now_s: float) -> Choice:
        """Reserve what the request needs, and say where it goes."""
        chosen, output = pick.chosen, round(min(ask.max_tokens, self.predictor.output_tokens))
        reused, size = chosen.reused_tokens(ask), chosen.worker.facts.hashing.page_size
        uncached, moved = ask.num_tokens - reused, 0
        if pick.prefill:
            helper = pick.prefill[0]
            self._fly(ask, helper, ask.num_tokens - helper.reused_tokens(ask), output, now_s)
            full = (ask.num_tokens - 1) // size
            moved, uncached = max(0, full - chosen.held.pages), ask.num_tokens - full * size
            reused = max(reused, helper.reused_tokens(ask))
        self._fly(ask, chosen, uncached, output, now_s)
        if ask.session:
            self._sessions[ask.tenant, ask.session] = chosen.id
            self._sessions.move_to_end((ask.tenant, ask.session))
            if len(self._sessions) > self.settings.max_sessions:
                self._sessions.popitem(last=False)
        names = tuple(candidate.id for candidate in pick.prefill)
        choice = Choice(ask.request_id, chosen.id, names, pick.ttft_s, reused)
        self._sent[ask.request_id] = _Sent(ask, choice, now_s, output, moved)
        return choice

    def _fly(
        self, ask: Ask, candidate: Candidate, num_tokens: int, output: int, now_s: float
    ) -> None:
        facts = candidate.worker.facts
        keys = self._keys[ask.request_id].get(facts.hashing, []) if facts.prefix_caching else []
        self.index.expect(facts.id, keys, candidate.held.pages)
        num_pages = -(-(ask.num_tokens + output) // facts.hashing.page_size) - candidate.held.pages
        expected = keys[candidate.held.pages :]
        flight = Flight(ask, facts.id, num_tokens, num_pages, now_s, expected)
        candidate.worker.send(flight, output)

    def _end(self, request_id: str) -> Ask | None:
        """Forget a request wherever it is."""
        self._keys.pop(request_id, None)
        self._outbox = [answer for answer in self._outbox if answer.request_id != request_id]
        if ask := self._queue.remove(request_id):
            return ask
        sent = self._sent.pop(request_id, None)
        if sent is None:
            return None
        for worker_id in (sent.choice.worker, *sent.choice.prefill[:1]):
            self._end_flight(worker_id, sent)
        self._queue.ended(sent.ask.tenant)
        return sent.ask

    def _end_flight(self, worker_id: str, sent: _Sent) -> None:
        view = self._views.get(worker_id)
        flight = view.end(sent.ask.request_id, sent.output_tokens) if view else None
        if flight is not None and not flight.started:
            self.index.withdraw(worker_id, flight.keys)

    def _retry_s(self) -> float:
        return min(60.0, max(0.1, len(self._queue) * self._end_every_s))
