"""Who is next: shares, priorities, limits, rates."""

import collections

import pytest

from rtp_jax.router import fair_queue
from rtp_jax.router.facts import Ask
from rtp_jax.router.fair_queue import FairQueue, Quota


def ask(request_id: str, tenant: str = "", priority: int = 0, deadline_s: float | None = None):
    return Ask(
        request_id=request_id,
        num_tokens=10,
        keys={},
        max_tokens=10,
        tenant=tenant,
        priority=priority,
        arrival_s=0.0,
        deadline_s=deadline_s,
    )


def serve(queue: FairQueue, number: int, *, ended: bool = True) -> list[str]:
    """Serve the next ones; return their ids."""
    served = []
    for _ in range(number):
        first = queue.first()
        if first is None:
            break
        queue.serve(first)
        served.append(first.request_id)
        if ended:
            queue.ended(first.tenant)
    return served


def test_one_tenant_is_served_in_order_of_priority_then_age():
    queue = FairQueue({})
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1), ("e", 0)):
        queue.push(ask(name, priority=priority), 1.0, 0.0)
    assert serve(queue, 9) == ["d", "b", "e", "a", "c"]
    assert len(queue) == 0


@pytest.mark.parametrize("costs", [(1.0, 1.0), (1.0, 10.0)])
def test_tenants_get_tokens_by_their_weights_however_large_their_requests(costs):
    queue = FairQueue({"heavy": Quota(weight=3.0)})
    for i in range(2000):
        queue.push(ask(f"heavy{i}", "heavy"), costs[0], 0.0)
        queue.push(ask(f"light{i}", "light"), costs[1], 0.0)
    tokens = collections.Counter()
    for name in serve(queue, 500):
        tokens[name[:5]] += costs[name.startswith("light")]
    # Apart by one request of either at most.
    assert abs(tokens["heavy"] / 3 - tokens["light"]) <= costs[0] / 3 + costs[1]


def test_a_crowd_of_one_tenant_does_not_hold_up_another():
    queue = FairQueue({})
    for i in range(100):
        queue.push(ask(f"crowd{i}", "crowd", priority=-5), 10.0, 0.0)
    serve(queue, 50)
    queue.push(ask("guest", "guest"), 10.0, 0.0)
    assert "guest" in serve(queue, 2)


def test_who_was_idle_has_not_saved_up():
    queue = FairQueue({})
    for i in range(100):
        queue.push(ask(f"busy{i}", "busy"), 10.0, 0.0)
    serve(queue, 50)
    for i in range(50):
        queue.push(ask(f"late{i}", "late"), 10.0, 0.0)
    served = serve(queue, 20)
    assert sum(name.startswith("late") for name in served) in (10, 11)


def test_a_tenant_at_its_limit_waits_and_others_pass():
    queue = FairQueue({"a": Quota(max_in_flight=2)})
    for i in range(4):
        queue.push(ask(f"a{i}", "a"), 1.0, 0.0)
        queue.push(ask(f"b{i}", "b"), 1.0, 0.0)
    assert sorted(serve(queue, 9, ended=False)) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    queue.ended("a")
    assert serve(queue, 9, ended=False) == ["a2"]


def test_a_rate_lets_a_burst_through_and_then_its_tokens_a_second():
    queue = FairQueue({"a": Quota(tokens_per_s=10.0, burst_tokens=40.0)})
    assert [queue.over_rate_s(ask("r", "a"), 20.0, 0.0) for _ in range(2)] == [None, None]
    assert queue.over_rate_s(ask("r", "a"), 20.0, 0.0) == pytest.approx(1e-3)
    assert queue.over_rate_s(ask("r", "a"), 20.0, 0.5) is None  # 5 tokens: it goes into debt
    assert queue.over_rate_s(ask("r", "a"), 20.0, 0.5) == pytest.approx(1.5)
    assert queue.over_rate_s(ask("r", "other"), 1e9, 0.5) is None


def test_those_whose_deadline_has_passed_are_taken_out():
    queue = FairQueue({})
    queue.push(ask("a", deadline_s=1.0), 1.0, 0.0)
    queue.push(ask("b", deadline_s=2.0), 1.0, 0.0)
    queue.push(ask("c"), 1.0, 0.0)
    assert [gone.request_id for gone in queue.expired(1.0)] == ["a"]
    assert queue.expired(1.5) == []
    queue.remove("b")
    assert queue.expired(9.0) == []
    assert serve(queue, 9) == ["c"]


def test_a_request_that_comes_back_under_its_id_is_not_taken_for_the_old_one():
    queue = FairQueue({})
    queue.push(ask("a", priority=-1, deadline_s=1.0), 1.0, 0.0)
    queue.push(ask("b"), 1.0, 0.0)
    queue.remove("a")
    queue.push(ask("a", priority=1, deadline_s=5.0), 1.0, 0.0)
    assert queue.expired(2.0) == []
    assert serve(queue, 9) == ["b", "a"]


def test_the_last_of_the_tenant_with_the_most_waiting_goes_first():
    queue = FairQueue({"paying": Quota(weight=10.0)})
    for i in range(5):
        queue.push(ask(f"paying{i}", "paying"), 1.0, 0.0)
        queue.push(ask(f"free{i}", "free", priority=-i), 1.0, 0.0)
    assert queue.last().request_id == "free0"


def test_tenants_that_left_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(fair_queue, "MAX_TENANTS", 10)
    queue = FairQueue({"kept": Quota(tokens_per_s=1.0)})
    assert queue.over_rate_s(ask("r", "kept"), 5.0, 0.0) is None
    for i in range(100):
        queue.push(ask(f"r{i}", f"tenant{i}"), 1.0, 0.0)
        serve(queue, 1)
    assert len(queue._tenants) <= 11
    assert queue.over_rate_s(ask("r", "kept"), 5.0, 0.0) is not None
