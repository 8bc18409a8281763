"""Errors that belong to no other test: what is asked, and which error answers."""

import json

import pytest

from rtp_jax import SamplingParams
from rtp_jax.engine.defaults import default_params
from rtp_jax.engine.requests import match_params, parse_prompts
from rtp_jax.errors import (
    CheckpointError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Unimplemented,
)
from rtp_jax.runner.buckets import lattice, smallest
from rtp_jax.runner.programs import make_private


@pytest.mark.parametrize("option", ["structured_outputs", "guided_decoding", "best_of"])
def test_an_option_that_comes_later_is_refused_by_name(option):
    with pytest.raises(Unimplemented, match=f"RTPJ-1002 OPTION_UNSUPPORTED: {option}="):
        SamplingParams(**{option: 1})


@pytest.mark.parametrize("prompts", [7, None, b"bytes", {"prompt": 7}, ["fine", 1.5]])
def test_what_is_no_prompt_is_refused(prompts):
    with pytest.raises(InvalidArgument, match="RTPJ-1004 PROMPT_INVALID"):
        parse_prompts(prompts)


@pytest.mark.parametrize("prompt", [{}, {"prompt": "a", "prompt_token_ids": [1]}])
def test_a_prompt_is_text_or_ids(prompt):
    with pytest.raises(InvalidArgument, match="RTPJ-1005 PROMPT_AMBIGUOUS") as refused:
        parse_prompts([prompt])
    assert refused.value.field == "prompt"


def test_params_are_one_for_all_or_one_for_each():
    one = SamplingParams()
    assert match_params(one, 3, one) == match_params([one] * 3, 3, one) == [one] * 3
    with pytest.raises(InvalidArgument, match="RTPJ-1006 LENGTHS_DIFFER: 3 prompts and 2 "):
        match_params([one] * 2, 3, one)


def test_defaults_that_no_request_could_ask_for_are_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 7}))
    with pytest.raises(CheckpointError, match=r"RTPJ-3108 .*generation_config.json has top_p=7"):
        default_params(tmp_path)


def test_a_step_larger_than_every_bucket_is_our_fault():
    buckets = lattice(256, 8, deterministic=False)
    assert smallest(buckets, 256, 8).tokens >= 256
    with pytest.raises(Internal, match="RTPJ-4105 NO_BUCKET: a step of 100000 tokens"):
        smallest(buckets, 100_000, 8)


def test_compiled_programs_are_kept_where_nobody_else_writes(tmp_path):
    make_private(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="RTPJ-4106 CACHE_NOT_PRIVATE"):
        make_private(tmp_path / "open")
