"""Which tiers of KV a request may use crosses every door, and what it found comes back by tier."""

import pytest

from rtp_jax import SamplingParams
from rtp_jax.engine.requests import parse_prompt
from rtp_jax.errors import InvalidArgument
from rtp_jax.request import EVERY_TIER, TIERS, Reuse
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.main import main
from rtp_jax.serving.prompts import reuse_of
from rtp_jax.wire import generation_pb2 as pb

FIVE = SamplingParams(max_tokens=5, temperature=0.0)


def test_the_tiers_of_a_request_reach_the_engine(client, running):
    client.generate("hello", FIVE)
    assert running.engine.seen[-1]["reuse"] is None
    client.generate("hello", FIVE, RequestOptions(reuse=Reuse(host=False, remote=False)))
    assert running.engine.seen[-1]["reuse"] == Reuse(host=False, remote=False)


def test_what_is_not_set_is_allowed():
    assert reuse_of(pb.Reuse()) == EVERY_TIER
    assert reuse_of(pb.Reuse(disk=False)) == Reuse(disk=False)
    assert reuse_of(pb.Reuse(device=False, host=True)) == Reuse(device=False)
    assert list(pb.Reuse.DESCRIPTOR.fields_by_name) == list(TIERS)


def test_tokens_come_back_by_tier(client):
    output = client.generate("hello", FIVE)
    assert output.cached_tokens == {"device": 2, "host": 1}
    assert output.num_cached_tokens == 3
    streamed = list(client.stream("hello", FIVE))
    assert streamed[-1].cached_tokens == {"device": 2, "host": 1}


def test_the_command_line_leaves_tiers_alone(running, capsys):
    arguments = ["generate", "fake", "hello", "--no-reuse", "disk", "--no-reuse", "remote"]
    assert main([*arguments, "--server", running.address]) == 0
    assert running.engine.seen[-1]["reuse"] == Reuse(disk=False, remote=False)
    with pytest.raises(SystemExit):
        main(["generate", "fake", "hello", "--no-reuse", "attic"])
    assert "attic" in capsys.readouterr().err


def test_a_prompt_names_tiers():
    prompt = {"prompt_token_ids": [1, 2], "reuse": {"host": False}}
    assert parse_prompt(prompt).reuse == Reuse(host=False)
    assert parse_prompt({"prompt": "a"}).reuse == EVERY_TIER
    assert parse_prompt({"prompt": "a", "reuse": Reuse(disk=False)}).reuse == Reuse(disk=False)


@pytest.mark.parametrize("reuse", [7, "host", {"attic": True}, {"host": 1}, ["host"]])
def test_what_names_no_tier_is_refused(reuse):
    with pytest.raises(InvalidArgument, match="RTPJ-1003 OPTION_INVALID: reuse") as refused:
        parse_prompt({"prompt": "a", "reuse": reuse})
    assert refused.value.field == "reuse"
