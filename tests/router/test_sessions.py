"""How sticky sessions are."""

from tests.router.test_router import ask, chosen, load, router_of


def test_a_session_without_slack_goes_where_it_is_fastest():
    router = router_of("a", "b", session_slack=0.0)
    first = chosen(router.ask(ask("r0", session="s"), 0.0))
    router.finished("r0", 0.1, num_output_tokens=1)
    router.report(first, load(num_running=1, num_decoding=1, decode_tokens=2, prefill_tokens=9), 1)
    assert chosen(router.ask(ask("r1", 600, 20, session="s"), 1.0)) != first
