"""The built-in model: the text that transformers gets from it, and the answers of the demo."""

import json
from pathlib import Path

import pytest

from rtp_jax import Engine, SamplingParams
from tests.engine.built_in import QUESTIONS, TWO_PROGRAMS, answers_of, num_right

GOLDEN = Path(__file__).parents[1] / "golden" / "rtp_tiny.json"


@pytest.fixture(scope="module")
def built_in(program_cache):
    """The built-in model in float32, with few programs."""
    options = {**TWO_PROGRAMS, "dtype": "float32", "compile_cache": str(program_cache)}
    with Engine("rtp-tiny", **options) as engine:
        yield engine


def test_greedy_text_is_that_of_transformers(built_in):
    cases = json.loads(GOLDEN.read_text())["cases"]
    # transformers was told to go on at an end: so are we, and it bans the end, as min_tokens does.
    params = SamplingParams(temperature=0.0, max_tokens=64, min_tokens=64)
    outputs = built_in.generate([case["prompt"] for case in cases], params, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        assert output.prompt_token_ids == case["prompt_token_ids"]
        assert output.outputs[0].token_ids == case["token_ids"]
        assert output.outputs[0].text == case["text"]


def test_the_demo_is_answered(built_in):
    assert num_right(answers_of(built_in)) >= 4
    for case in QUESTIONS:
        if case["name"] == "recall":
            chat = [{"role": "user", "content": case["prompt"].split(": ", 1)[1].split("\n")[0]}]
            answer = built_in.chat(chat, SamplingParams(temperature=0.0, max_tokens=16))
            assert case["expect"] in answer[0].outputs[0].text
