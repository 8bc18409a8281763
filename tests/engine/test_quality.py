"""What fewer bits may cost the built-in model: loss on text it never saw, and what it recalls."""

import pytest

from bench.quality.answers import Answers, ask, held_out
from bench.quality.arms import PLAIN, Arm, usual_arms
from bench.quality.models import RTP_TINY
from tools.rtp_tiny.tasks import DRAWERS

ARMS = [arm for arm in usual_arms({"KV mixed": "0:bfloat16,1-2:int8,3:fp8"}) if arm.may_add]
QUICK = ("int8_dynamic", "fp8")  # KV is in `test_quantized_kv.py`, over all of the text


@pytest.fixture(scope="module")
def some(program_cache) -> dict:
    """A part of the text and of the cases."""
    return {"texts": held_out()[13:21], "kinds": ("recall", "copy"), "cases": 32}


@pytest.fixture(scope="module")
def everything() -> dict:
    """All of it."""
    return {"texts": held_out(), "kinds": tuple(DRAWERS), "cases": 256}


def answers(arm: Arm, what: dict, cache) -> Answers:
    options = {"dtype": PLAIN, "compile_cache": str(cache), **arm.options}
    return ask(str(RTP_TINY), **what, **options)


@pytest.fixture(scope="module")
def plain(some, program_cache) -> Answers:
    return answers(Arm(PLAIN), some, program_cache)


@pytest.fixture(scope="module")
def plain_everything(everything, program_cache) -> Answers:
    return answers(Arm(PLAIN), everything, program_cache)


@pytest.mark.parametrize("arm", [a for a in ARMS if a.name in QUICK], ids=lambda arm: arm.name)
@pytest.mark.capability("quantized weights")
def test_a_scheme_costs_no_more_than_it_may(plain, some, program_cache, arm):
    found = answers(arm, some, program_cache)
    assert abs(found.logprobs - plain.logprobs).mean() > 0  # the option was not ignored
    assert found.loss <= plain.loss * (1 + arm.may_add)
    assert found.right["recall"] == plain.right["recall"]
    assert found.accuracy() >= plain.accuracy() - 2 / 64
    assert plain.accuracy("recall") > 0.9


@pytest.mark.full
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_no_scheme_costs_more_over_all_of_the_text_and_tasks(
    plain_everything, everything, program_cache, arm
):
    found, plain = answers(arm, everything, program_cache), plain_everything
    assert found.loss <= plain.loss * (1 + arm.may_add)
    # Of 256 cases one or two stand on the edge.
    assert found.accuracy("recall") >= plain.accuracy("recall") - 1 / 256
    assert found.accuracy() >= plain.accuracy() - 0.01
