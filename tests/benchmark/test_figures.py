"""What is made of observations: each definition on a case worked out by hand."""

import numpy as np
import pytest

from rtp_jax.benchmark import figures
from rtp_jax.benchmark.drive import Observed
from rtp_jax.benchmark.options import objective
from rtp_jax.benchmark.workload import Planned
from rtp_jax.errors import InvalidArgument


def observed(messages, *, at_s=0.0, sent_s=0.0, **known) -> Observed:
    """Build a request that was seen to bring messages and then end."""
    wanted = sum(1 if count is None else count for _, count in messages) or 1
    ended_s = messages[-1][0] if messages else 1.0
    return Observed(Planned((1, 2), wanted), at_s, sent_s, ended_s, list(messages), **known)


def test_the_latencies_of_a_request():
    seen = observed([(1.0, 1), (1.5, 2), (1.6, 1)], at_s=0.2, sent_s=0.3)
    assert figures.ttft_s(seen) == pytest.approx(0.8)  # from the arrival, not from the sending
    assert figures.e2e_s(seen) == pytest.approx(1.4)
    assert figures.tpot_s(seen) == pytest.approx(0.6 / 3)
    assert figures.itl_s(seen) == pytest.approx([0.5, 0.0, 0.1])
    assert figures.message_gaps_s(seen) == pytest.approx([0.5, 0.1])
    assert figures.tpot_s(observed([(1.0, 1)])) is None
    assert figures.itl_s(observed([(1.0, 3)])) == [0.0, 0.0]


def test_itl_where_the_server_does_not_count_its_messages():
    unknown = [(1.0, None), (1.5, None), (1.7, None)]
    assert figures.itl_s(observed(unknown, num_output_tokens=3)) == pytest.approx([0.5, 0.2])
    assert figures.itl_s(observed(unknown, num_output_tokens=5)) is None
    assert figures.tpot_s(observed(unknown, num_output_tokens=5)) == pytest.approx(0.7 / 4)


def test_the_summary_of_a_run():
    fine = [
        observed([(0.1 * i, 1), (0.1 * i + 0.3, 1)], num_prompt_tokens=10, num_cached_tokens=4)
        for i in range(1, 11)
    ]
    short = observed([(1.0, 1)], num_output_tokens=1, num_prompt_tokens=10, num_cached_tokens=0)
    short.planned = Planned((1, 2), 9)
    failed = [observed([], failure="RTPJ-2201 QUEUE_FULL"), observed([(2.0, 1)], failure="timeout")]
    found = figures.summary([*fine, short, *failed], objective("--slo", "ttft=0.55,tpot=0.5"))
    assert (found["num_requests"], found["num_completed"], found["num_short"]) == (13, 11, 1)
    assert found["failures"] == {"RTPJ-2201 QUEUE_FULL": 1, "timeout": 1}
    assert found["duration_s"] == 2.0
    assert found["requests_per_s"] == 11 / 2
    assert found["output_tokens_per_s"] == 21 / 2  # of completed requests alone
    assert (found["prompt_tokens"], found["cached_tokens"]) == (110, 40)
    assert found["cached_share"] == pytest.approx(40 / 110)
    ttfts = [0.1 * i for i in range(1, 11)] + [1.0]
    assert found["ttft_s"]["p95"] == pytest.approx(np.percentile(ttfts, 95, method="linear"))
    assert found["ttft_s"]["p50"] == pytest.approx(0.6)
    assert found["tpot_s"]["max"] == pytest.approx(0.3)
    assert found["slo_s"] == {"ttft": 0.55, "tpot": 0.5}
    assert found["goodput"]["requests_per_s"] == 5 / 2
    assert found["goodput"]["output_tokens_per_s"] == 10 / 2
    assert found["goodput"]["share"] == pytest.approx(5 / 13)


def test_a_run_in_which_nothing_completed():
    found = figures.summary([observed([], failure="timeout")], objective("--slo", "e2e=1"))
    assert found["ttft_s"] is found["tpot_s"] is found["itl_s"] is found["cached_tokens"] is None
    assert found["output_tokens_per_s"] == found["goodput"]["share"] == 0.0


def test_an_objective_is_kept_in_all_its_parts():
    seen = observed([(0.5, 1), (0.6, 1)])
    for text, kept in (
        ("ttft=0.5", True),
        ("ttft=0.49", False),
        ("ttft=1,tpot=0.05", False),
        ("tpot=0.2,e2e=0.7", True),
        ("e2e=0.59", False),
    ):
        assert figures.keeps(seen, objective("--slo", text)) is kept, text


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=0", "itl=1", "ttft=1,ttft=2", "e2e=x"])
def test_an_objective_that_is_none(text):
    with pytest.raises(InvalidArgument, match="RTPJ-5501 BENCH_OPTION_INVALID: --slo"):
        objective("--slo", text)


def test_medians_keep_their_ranges_and_rounds():
    rounds = [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 9.0}, {"a": 2.0, "b": 2.0}]
    found = figures.medians(rounds)
    assert (found["a"], found["b"]) == (2.0, 2.0)
    assert found["ranges"] == {"a": [1.0, 3.0], "b": [1.0, 9.0]}
    assert found["rounds"] == rounds
