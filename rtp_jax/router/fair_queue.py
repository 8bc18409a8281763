"""Who is next?  Fair among tenants by what they use, by priority and age within one.

Each tenant has a virtual time that moves on by the tokens of a request it gets served, divided by
its weight; the one that is furthest behind is next.  A tenant that was idle starts at the present,
so nobody saves up.  Priorities order the requests of one tenant and never overtake another's.

Source: Goyal, Vin, Cheng 1996, Start-time fair queuing; Sheng et al. 2024, Fairness in serving
large language models (arXiv:2401.00588), which charges tokens.  Read next: `router.py`.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rtp_jax.router.facts import Ask

MAX_TENANTS = 4096  # that are remembered while idle; names come from clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may use."""

    weight: float = 1.0  # share of the workers when tenants compete
    max_in_flight: int | None = None  # requests at workers; more wait
    tokens_per_s: float | None = None  # prompt and max_tokens, on average; more are refused
    burst_tokens: float = 0.0  # that may come at once; one second's at least


@dataclass(slots=True)
class _Tenant:
    quota: Quota
    finish: float = 0.0  # virtual time at which what it was given ends
    num_in_flight: int = 0
    num_waiting: int = 0
    level: float = 0.0  # tokens it may still use; below zero: refused
    level_s: float = 0.0
    heap: list[tuple[int, int, str]] = field(default_factory=list)  # priority, age, request id


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue."""

    ask: Ask
    cost: float  # tokens
    age: int  # smaller came earlier


class FairQueue:
    """Requests that wait, and what tenants have in flight."""

    def __init__(self, quotas: Mapping[str, Quota]):
        self._quotas = quotas
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[str, Waiting] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._now = 0.0  # virtual
        self._age = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def asks(self) -> Iterator[Ask]:
        """Go through all that wait, the oldest first."""
        return (waiting.ask for waiting in self._waiting.values())

    def over_rate_s(self, ask: Ask, cost: float, now_s: float) -> float | None:
        """Charge a request to its tenant's rate; return the time to wait if that is used up."""
        quota = self._tenant(ask.tenant, now_s).quota
        if quota.tokens_per_s is None:
            return None
        tenant = self._tenant(ask.tenant, now_s)
        most = max(quota.burst_tokens, quota.tokens_per_s)
        tenant.level = min(most, tenant.level + (now_s - tenant.level_s) * quota.tokens_per_s)
        tenant.level_s = now_s
        if tenant.level <= 0:
            return max(1e-3, -tenant.level / quota.tokens_per_s)
        tenant.level -= cost  # a large request may go into debt, or it would never be served
        return None

    def push(self, ask: Ask, cost: float, now_s: float) -> None:
        """Let a request wait."""
        tenant = self._tenant(ask.tenant, now_s)
        self._age += 1
        self._waiting[ask.request_id] = Waiting(ask, cost, self._age)
        heapq.heappush(tenant.heap, (ask.priority, self._age, ask.request_id))
        tenant.num_waiting += 1
        if ask.deadline_s is not None:
            heapq.heappush(self._deadlines, (ask.deadline_s, ask.request_id))

    def first(self) -> Ask | None:
        """Return who is next, if somebody may go; tenants at their limit stay."""
        best: _Tenant | None = None
        for tenant in self._tenants.values():
            if tenant.num_waiting and _may_go(tenant) and (not best or tenant.finish < best.finish):
                best = tenant
        if best is None:
            return None
        while not self._holds(best.heap[0]):
            heapq.heappop(best.heap)
        return self._waiting[best.heap[0][2]].ask

    def serve(self, ask: Ask) -> None:
        """Take a request out, since a worker has it, and charge its tenant."""
        waiting = self._waiting[ask.request_id]
        tenant = self._tenants[ask.tenant]
        self._now = max(self._now, tenant.finish)
        tenant.finish = self._now + waiting.cost / tenant.quota.weight
        tenant.num_in_flight += 1
        self.remove(ask.request_id)

    def ended(self, tenant: str) -> None:
        """Count a request of a tenant that a worker no longer has."""
        self._tenants[tenant].num_in_flight -= 1
        self._forget(tenant)

    def remove(self, request_id: str) -> Ask | None:
        """Take a request out."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return None
        tenant = self._tenants[waiting.ask.tenant]
        tenant.num_waiting -= 1
        if not tenant.num_waiting:
            tenant.heap.clear()
        if not self._waiting:
            self._deadlines.clear()
        self._forget(waiting.ask.tenant)
        return waiting.ask

    def expired(self, now_s: float) -> list[Ask]:
        """Take out those whose deadline has passed."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            deadline_s, request_id = heapq.heappop(self._deadlines)
            waiting = self._waiting.get(request_id)
            if waiting is not None and waiting.ask.deadline_s == deadline_s:
                self.remove(request_id)
                found.append(waiting.ask)
        return found

    def last(self) -> Ask:
        """Return who goes when the queue is full: the last in line of whoever has most in it."""
        most = max(self._tenants, key=lambda name: self._share(self._tenants[name]))
        return max(
            (waiting for waiting in self._waiting.values() if waiting.ask.tenant == most),
            key=lambda waiting: (waiting.ask.priority, waiting.age),
        ).ask

    def _share(self, tenant: _Tenant) -> float:
        return tenant.num_waiting / tenant.quota.weight

    def _holds(self, entry: tuple[int, int, str]) -> bool:
        waiting = self._waiting.get(entry[2])
        return waiting is not None and waiting.age == entry[1]

    def _tenant(self, name: str, now_s: float) -> _Tenant:
        if name not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                self._forget_idle()
            quota = self._quotas.get(name, Quota())
            level = max(quota.burst_tokens, quota.tokens_per_s or 0.0)
            self._tenants[name] = _Tenant(quota, level=level, level_s=now_s)
        return self._tenants[name]

    def _forget(self, name: str) -> None:
        """Forget a tenant that has nothing here and owes nothing, so that they do not pile up."""
        tenant = self._tenants[name]
        if _idle(tenant) and tenant.finish <= self._now:
            del self._tenants[name]

    def _forget_idle(self) -> None:
        kept = {name: tenant for name, tenant in self._tenants.items() if not _idle(tenant)}
        self._tenants = kept


def _idle(tenant: _Tenant) -> bool:
    rated = tenant.quota.tokens_per_s is not None  # its debt counts; it was configured by name
    return not (tenant.num_waiting or tenant.num_in_flight or rated)


def _may_go(tenant: _Tenant) -> bool:
    most = tenant.quota.max_in_flight
    return most is None or tenant.num_in_flight < most
