"""The built-in model: the text that transformers gets from it, and the answers of the demo."""

import json
from pathlib import Path

import pytest

from rtp_jax import Engine, SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden" / "rtp_tiny.json"
DEMO = Path(__file__).parents[2] / "rtp_jax" / "assets" / "rtp-tiny" / "demo.json"


@pytest.fixture(scope="module")
def built_in(program_cache):
    """The built-in model in float32, with few programs."""
    small = {"max_num_seqs": 16, "max_num_batched_tokens": 64}
    with Engine("rtp-tiny", dtype="float32", compile_cache=str(program_cache), **small) as engine:
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
    cases = json.loads(DEMO.read_text())
    params = [SamplingParams(temperature=0.0, max_tokens=c["max_tokens"], stop="\n") for c in cases]
    outputs = built_in.generate([case["prompt"] for case in cases], params, use_tqdm=False)
    right = [c["expect"] in o.outputs[0].text for c, o in zip(cases, outputs, strict=True)]
    assert sum(right) >= 4
    for case in cases:
        if case["name"] == "recall":
            chat = [{"role": "user", "content": case["prompt"].split(": ", 1)[1].split("\n")[0]}]
            answer = built_in.chat(chat, SamplingParams(temperature=0.0, max_tokens=16))
            assert case["expect"] in answer[0].outputs[0].text
