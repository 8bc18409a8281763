"""The router's decisions: load, pages, roles, sessions, waiting, refusing, losing workers."""

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.router.facts import (
    Ask,
    Choice,
    EventKind,
    PageEvent,
    PageEvents,
    PageHashing,
    Refusal,
    Role,
    StepSample,
    Tier,
    Wait,
    WorkerFacts,
    WorkerLoad,
)
from rtp_jax.router.fair_queue import Quota
from rtp_jax.router.policies import POLICIES
from rtp_jax.router.router import Router
from rtp_jax.router.settings import RouterSettings

HASHING = PageHashing(b"key", "model", "bfloat16", 16)
KEYS = tuple(i.to_bytes(16, "little") for i in range(64))
STEPS = [StepSample(p, d, 100 * d + p, 0.04 + 4e-4 * p) for p in (0, 64, 512) for d in (1, 4)] * 20


def facts(name: str, role: Role = Role.BOTH, *, epoch: str = "1", slots: int = 4) -> WorkerFacts:
    return WorkerFacts(
        id=name,
        address=f"{name}:1",
        epoch=epoch,
        role=role,
        hashing=HASHING,
        num_pages=1000,
        max_num_seqs=slots,
        max_num_batched_tokens=512,
        max_model_len=4096,
        layout=b"same",
        kv_address=f"{name}:2",
    )


def load(**fields) -> WorkerLoad:
    idle = {
        "num_running": 0,
        "num_waiting": 0,
        "num_free_pages": 1000,
        "num_cached_pages": 0,
        "prefill_tokens": 0,
        "decode_tokens": 0,
        "num_decoding": 0,
    }
    return WorkerLoad(**(idle | fields))


def ask(request_id: str, num_tokens: int = 200, first_page: int = 0, **fields) -> Ask:
    keys = {HASHING: KEYS[first_page : first_page + num_tokens // 16]}
    told = {"max_tokens": 32, "arrival_s": 0.0} | fields
    return Ask(request_id=request_id, num_tokens=num_tokens, keys=keys, **told)


def router_of(*names: str, policy: str = "ttft", slots: int = 4, **settings) -> Router:
    router = Router(RouterSettings(policy=policy, **settings))
    for name in names:
        role = {"p": Role.PREFILL, "d": Role.DECODE}.get(name[0], Role.BOTH)
        router.add_worker(facts(name, role, slots=slots), 0.0)
        router.report(name, load(steps=STEPS), 0.0)
        router.events(name, PageEvents(1, [], snapshot=True))
    return router


def hold(router: Router, name: str, num_pages: int, tier: Tier = Tier.DEVICE) -> None:
    first = router.next_event(name)
    events = [PageEvent(EventKind.INSERTED, tier, key) for key in KEYS[:num_pages]]
    assert router.events(name, PageEvents(first, events))


def chosen(answer) -> str:
    assert isinstance(answer, Choice), answer
    return answer.worker


def test_an_idle_worker_that_holds_the_prefix_is_chosen_and_the_reuse_is_told():
    router = router_of("a", "b", "c")
    hold(router, "b", 10)
    answer = router.ask(ask("r"), 0.0)
    assert chosen(answer) == "b"
    assert answer.reused_tokens == 160
    assert answer.prefill == ()
    assert answer.ttft_s == pytest.approx(0.04 + 40 * 4e-4, rel=0.3)


def test_the_last_token_of_a_prompt_is_never_reused():
    router = router_of("a")
    hold(router, "a", 12)
    assert router.ask(ask("r", 192), 0.0).reused_tokens == 176


def test_a_faster_tier_is_worth_more():
    router = router_of("a", "b")
    hold(router, "a", 10, Tier.DISK)
    hold(router, "b", 10, Tier.HOST)
    assert chosen(router.ask(ask("r"), 0.0)) == "b"


def test_a_long_queue_outweighs_a_prefix_and_a_short_one_does_not():
    for waiting_tokens, expected in ((50, "a"), (5000, "b")):
        router = router_of("a", "b")
        hold(router, "a", 10)
        busy = load(num_running=2, num_waiting=1, prefill_tokens=waiting_tokens)
        router.report("a", busy, 1.0)
        router.report("b", load(), 1.0)
        assert chosen(router.ask(ask("r"), 1.0)) == expected


def test_what_was_sent_counts_until_a_load_shows_it():
    router = router_of("a", "b")
    names = [chosen(router.ask(ask(f"r{i}", first_page=16 * i), 0.0)) for i in range(2)]
    assert sorted(names) == ["a", "b"]
    sent = router.workers[names[0]]
    assert sent.prefill_tokens(0.0) == 200
    busy = load(num_running=1, prefill_tokens=200)
    router.report(names[0], busy, 0.001)  # written before the request came
    assert sent.prefill_tokens(0.001) == 400
    router.report(names[0], busy, 0.1)
    assert sent.prefill_tokens(0.1) == 200
    assert sent.num_busy == 1


def test_pages_on_their_way_are_known_so_that_a_burst_of_one_prefix_stays_together():
    router = router_of("a", "b", "c")
    router.report("a", load(num_decoding=1, num_running=1, decode_tokens=10), 0.0)
    names = {chosen(router.ask(ask(f"r{i}", 400), 0.0)) for i in range(3)}
    assert len(names) == 1
    answer = router.ask(ask("last", 400), 0.0)
    assert answer.reused_tokens == 384
    for request_id in ("r0", "r1", "r2", "last"):  # nobody computed them after all
        router.failed(request_id, 0.0)
    assert len(router.index) == 0


def test_a_slow_worker_gets_less():
    router = router_of("a", "b")
    slow = [step._replace(seconds=5 * step.seconds) for step in STEPS * 5]
    router.report("a", load(steps=slow), 0.0)
    names = [chosen(router.ask(ask(f"r{i}", first_page=i), 0.0)) for i in range(3)]
    assert names == ["b", "b", "b"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_calls_give_the_same_answers(policy):
    def answers() -> list:
        router, given = router_of("a", "b", "p", "c", policy=policy), []
        hold(router, "b", 6)
        for i in range(40):
            given.append(router.ask(ask(f"r{i}", 20 + 37 * i % 400, tenant=f"t{i % 3}"), i * 0.1))
            if i % 3 == 2:
                router.started(f"r{i - 2}", i * 0.1)
                router.finished(f"r{i - 2}", i * 0.1, num_output_tokens=i)
            given += router.poll(i * 0.1)
        return given

    assert answers() == answers()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_fills_a_worker_past_its_slots_and_all_that_wait_are_served(policy):
    router = router_of("a", "b", policy=policy, slots=2)
    answers = [router.ask(ask(f"r{i}", first_page=4 * i), 0.0) for i in range(6)]
    assert [type(answer) for answer in answers] == [Choice] * 4 + [Wait] * 2
    assert answers[5].num_ahead == 1
    assert router.num_waiting == 2
    assert router.poll(0.0) == []
    for i in range(4):
        router.finished(f"r{i}", 1.0, num_output_tokens=5)
    assert [answer.request_id for answer in router.poll(1.0)] == ["r4", "r5"]
    assert router.num_waiting == 0


def test_round_robin_takes_turns():
    router = router_of("a", "b", "c", policy="round_robin")
    names = [chosen(router.ask(ask(f"r{i}"), 0.0)) for i in range(6)]
    assert names == ["a", "b", "c", "a", "b", "c"]


def test_least_tokens_counts_prompts_and_outputs():
    router = router_of("a", "b", policy="least_tokens")
    assert chosen(router.ask(ask("long", 400), 0.0)) == "a"
    assert [chosen(router.ask(ask(f"r{i}", 100), 0.0)) for i in range(3)] == ["b", "b", "b"]
    router.finished("long", 1.0, num_output_tokens=1)
    assert chosen(router.ask(ask("next", 100), 1.0)) == "a"


def test_affinity_follows_the_prefix_until_its_worker_has_far_more_to_do():
    router = router_of("a", "b", policy="affinity", slots=99)
    hold(router, "b", 20)
    names = [chosen(router.ask(ask(f"r{i}", 320), 0.0)) for i in range(8)]
    assert names[0] == "b"
    assert "a" in names


def test_a_session_stays_with_its_worker_unless_that_is_much_slower():
    router = router_of("a", "b")
    first = chosen(router.ask(ask("r0", session="s"), 0.0))
    other = {"a": "b", "b": "a"}[first]
    router.finished("r0", 0.1, num_output_tokens=1)
    router.report(first, load(num_running=1, num_decoding=1, decode_tokens=2, prefill_tokens=9), 1)
    assert chosen(router.ask(ask("r1", 400, 30), 1.0)) == other
    router.finished("r1", 1.1, num_output_tokens=1)
    assert chosen(router.ask(ask("r2", 600, 20, session="s"), 1.0)) == first
    router.finished("r2", 1.1, num_output_tokens=1)
    router.report(first, load(num_running=1, num_decoding=1, prefill_tokens=9000), 2.0)
    assert chosen(router.ask(ask("r3", 600, 20, session="s"), 2.0)) == other


def test_short_prompts_skip_the_hop_and_long_ones_take_it_when_the_decoder_is_busy():
    router = router_of("d1", "p1", "p2", slots=16)
    assert router.ask(ask("idle", 400), 0.0).prefill == ()
    router.finished("idle", 0.0, num_output_tokens=1)
    busy = load(num_running=12, num_decoding=12, decode_tokens=6000)
    router.report("d1", busy, 1.0)
    assert router.ask(ask("short", 10, 40), 1.0).prefill == ()
    answer = router.ask(ask("long", 900), 1.0)
    assert (answer.worker, answer.prefill) == ("d1", ("p1", "p2"))
    # What it reserved at the helper is given back with its first token.
    assert router.workers["p1"].prefill_tokens(1.0) == 900
    router.started("long", 2.0)
    assert router.workers["p1"].prefill_tokens(2.0) == 0
    # With the pages at hand there is little left to prefill.
    hold(router, "d1", 56)
    assert router.ask(ask("known", 900), 2.0).prefill == ()


def test_helpers_with_another_layout_or_without_a_door_for_pages_are_not_named():
    router = router_of("d1", "p1")
    router.report("d1", load(num_running=3, num_decoding=3, decode_tokens=6000), 0.0)
    assert router.ask(ask("r", 900), 0.0).prefill == ("p1",)
    for changed in ({"layout": b"other"}, {"kv_address": ""}):
        fields = {n: getattr(facts("p1", Role.PREFILL), n) for n in WorkerFacts.__slots__}
        router.add_worker(WorkerFacts(**(fields | changed)), 0.0)
        router.failed("r", 0.0)
        assert router.ask(ask("r", 900), 0.0).prefill == ()


def test_the_time_pages_take_to_travel_is_learned():
    router = router_of("d1", "p1")
    router.report("d1", load(num_running=3, num_decoding=3, decode_tokens=6000), 0.0)
    before = router.predictor.transfer_page_s
    answer = router.ask(ask("r", 900), 0.0)
    router.started("r", answer.ttft_s + 5.0)
    assert router.predictor.transfer_page_s == pytest.approx(1.2 * before)
    router.finished("r", 6.0, num_output_tokens=1)
    # Alone again, requests say nothing of travelling, and what was learned fades.
    for i in range(2000):
        assert router.ask(ask(f"s{i}", 10), 0.0).prefill == ()
        router.started(f"s{i}", 0.0)
        router.finished(f"s{i}", 0.0, num_output_tokens=1)
    assert router.predictor.transfer_page_s == pytest.approx(before, rel=0.01)


def test_requests_that_come_sooner_than_predicted_make_pages_travel_faster():
    router = router_of("d1", "p1")
    before = router.predictor.transfer_page_s
    for i in range(100):
        router.report("d1", load(num_running=3, num_decoding=3, decode_tokens=6000), 0.0)
        assert router.ask(ask(f"r{i}", 900), 0.0).prefill == ("p1",)
        router.started(f"r{i}", 0.0)
        router.finished(f"r{i}", 0.0, num_output_tokens=1)
    assert 0 < router.predictor.transfer_page_s < before / 2


def test_a_prefill_worker_alone_serves_nobody_and_a_new_role_changes_that():
    router = router_of("p1", no_worker_s=1.0)
    assert isinstance(router.ask(ask("r"), 0.0), Wait)
    assert router.add_worker(facts("p1", Role.DECODE), 0.5) == []
    assert [chosen(answer) for answer in router.poll(0.5)] == ["p1"]


def test_without_a_worker_requests_wait_a_while_and_are_then_refused():
    router = Router(RouterSettings(no_worker_s=2.0))
    assert isinstance(router.ask(ask("r0"), 10.0), Wait)
    assert router.poll(11.9) == []
    (refusal,) = router.poll(12.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.error.id, refusal.error.name) == ("RTPJ-7004", "NO_WORKER")
    assert refusal.retry_after_s == 2.0
    router.add_worker(facts("a"), 13.0)
    assert chosen(router.ask(ask("r0"), 13.0)) == "a"


def test_a_draining_worker_gets_nothing_and_a_silent_one_only_if_it_must_be():
    router = router_of("a", "b", policy="round_robin")
    router.report("a", load(draining=True), 0.0)
    assert [chosen(router.ask(ask(f"r{i}"), 0.0)) for i in range(2)] == ["b", "b"]
    router.report("a", load(), 10.0)  # b has said nothing for ten seconds
    assert [chosen(router.ask(ask(f"s{i}"), 10.0)) for i in range(2)] == ["a", "a"]
    assert chosen(router.ask(ask("t"), 20.0)) in ("a", "b")


def test_a_request_whose_worker_died_goes_elsewhere():
    router = router_of("a", "b")
    first = chosen(router.ask(ask("r0"), 0.0))
    other = chosen(router.ask(ask("r1", first_page=20), 0.0))
    assert router.remove_worker(first, 1.0) == ["r0"]
    assert router.num_in_flight == 1
    again = ask("r0", 210, avoid=frozenset({first}))
    assert chosen(router.ask(again, 1.0)) == other
    router.add_worker(facts(first, epoch="2"), 1.0)
    router.failed("r0", 1.0)
    assert chosen(router.ask(again, 1.0)) == other  # it had failed there, as idle as it is
    router.failed("r0", 2.0)
    router.remove_worker(other, 2.0)
    assert chosen(router.ask(again, 2.0)) == first  # nobody else is left


def test_another_epoch_is_another_life():
    router = router_of("a", "b")
    hold(router, "a", 10)
    assert chosen(router.ask(ask("r0"), 0.0)) == "a"
    assert router.add_worker(facts("a", epoch="2"), 1.0) == ["r0"]
    assert router.next_event("a") == 0
    assert router.workers["a"].num_busy == 0
    assert router.ask(ask("r1"), 1.0).reused_tokens == 0
    assert not router.events("unknown", PageEvents(1, [], snapshot=True))


def test_a_full_router_refuses_the_tenant_that_fills_it():
    router = router_of("a", slots=1, max_waiting=3)
    assert chosen(router.ask(ask("r", tenant="crowd"), 0.0)) == "a"
    waiting = [router.ask(ask(f"c{i}", tenant="crowd"), 0.0) for i in range(3)]
    assert [type(answer) for answer in waiting] == [Wait] * 3
    refusal = router.ask(ask("c3", tenant="crowd"), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.error.id, refusal.error.name) == ("RTPJ-7003", "ROUTER_FULL")
    assert refusal.retry_after_s > 0
    assert isinstance(router.ask(ask("guest", tenant="guest"), 0.0), Wait)
    assert [answer.request_id for answer in router.poll(0.0)] == ["c2"]
    assert router.num_waiting == 3


def test_quotas_bound_what_a_tenant_has_in_flight_and_its_rate():
    quotas = {"a": Quota(max_in_flight=1), "b": Quota(tokens_per_s=100.0)}
    router = router_of("w", slots=99, quotas=quotas)
    assert isinstance(router.ask(ask("a0", tenant="a"), 0.0), Choice)
    assert isinstance(router.ask(ask("a1", tenant="a"), 0.0), Wait)
    assert isinstance(router.ask(ask("b0", tenant="b"), 0.0), Choice)
    refusal = router.ask(ask("b1", tenant="b"), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.error.id, refusal.error.name) == ("RTPJ-7005", "QUOTA_SPENT")
    assert refusal.retry_after_s == pytest.approx((232 - 100) / 100)
    # Sent again after its worker failed, it is not charged again.
    again = ask("b0", tenant="b", avoid=frozenset({"w"}))
    router.failed("b0", 0.0)
    assert isinstance(router.ask(again, 0.0), Choice)
    router.finished("a0", 1.0, num_output_tokens=3)
    assert [answer.request_id for answer in router.poll(1.0)] == ["a1"]


def test_a_deadline_ends_the_wait():
    router = router_of("a", slots=1)
    router.ask(ask("r0"), 0.0)
    assert isinstance(router.ask(ask("r1", deadline_s=2.0), 0.0), Wait)
    assert router.poll(1.9) == []
    (refusal,) = router.poll(2.0)
    assert (refusal.request_id, refusal.error.name) == ("r1", "DEADLINE_EXCEEDED")
    late = router.ask(ask("r2", deadline_s=2.0), 3.0)
    assert isinstance(late, Refusal)
    assert late.error.id == "RTPJ-4001"


def test_a_request_that_waits_can_be_given_up():
    router = router_of("a", slots=1)
    router.ask(ask("r0"), 0.0)
    router.ask(ask("r1"), 0.0)
    router.finished("r1", 1.0, num_output_tokens=0)
    router.finished("r0", 1.0, num_output_tokens=4)
    assert router.poll(1.0) == []
    assert (router.num_waiting, router.num_in_flight, len(router.index)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"policy": "best"}, "POLICY_UNKNOWN"),
        ({"max_waiting": 0}, "ROUTER_SETTING_INVALID"),
        ({"max_worker_wait_s": -1.0}, "ROUTER_SETTING_INVALID"),
        ({"quotas": {"a": Quota(weight=0.0)}}, "ROUTER_SETTING_INVALID"),
        ({"quotas": {"a": Quota(tokens_per_s=0.0)}}, "ROUTER_SETTING_INVALID"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, name):
    with pytest.raises(InvalidArgument) as refused:
        RouterSettings(**settings)
    assert refused.value.name == name
