"""What a router keeps of a request: each token once, in order, whichever worker sent it."""

import pytest

from rtp_jax import SamplingParams
from rtp_jax.errors import Internal, Unavailable
from rtp_jax.request import Request
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.journey import Journey
from rtp_jax.serving.main import main
from rtp_jax.wire import generation_pb2 as pb


def journey(**options) -> Journey:
    """Begin with a request of two completions."""
    params = SamplingParams(n=2, max_tokens=4, output_kind=OutputKind.DELTA, **options)
    request = Request(
        id="j", prompt_token_ids=(5, 6), params=params, seed=7, max_tokens=4, priority=3
    )
    return Journey(request)


def frame(index: int, first: int, ids: list[int], **fields) -> pb.GenerateFrame:
    """Make a frame of one completion."""
    made = pb.GenerateFrame()
    made.completions.add(index=index, first_token=first, token_ids=ids, **fields)
    return made


def test_a_second_worker_is_asked_for_the_rest_and_nothing_comes_twice():
    asked = journey(temperature=0.5, truncate_prompt_tokens=2)
    first = asked.message()
    assert (first.sampling.seed, first.priority, list(first.token_ids.ids)) == (7, 3, [5, 6])
    assert not first.HasField("resume")
    assert not first.sampling.HasField("truncate_prompt_tokens")
    stop = {"finish_reason": pb.FINISH_REASON_STOP, "stop_token_id": 9}
    outputs = [*asked.take(frame(0, 0, [1])), *asked.take(frame(1, 0, [8, 9], **stop))]
    assert [output.outputs[0].token_ids for output in outputs] == [[1], [8, 9]]
    rest = asked.message(prefill_at=["p:1"])
    assert [list(each.ids) for each in rest.resume.output] == [[1], [8, 9]]
    assert list(rest.prefill_at) == ["p:1"]
    assert not list(asked.take(frame(1, 2, [], **stop)))  # it ended before
    (last,) = asked.take(frame(0, 1, [2, 3, 4], finish_reason=pb.FINISH_REASON_LENGTH))
    assert last.finished
    assert asked.finished
    assert (asked.num_output_tokens, asked.tokens_left) == (6, 2)


@pytest.mark.parametrize("first", [0, 2])
def test_a_gap_or_a_repeat_is_an_error_and_never_shown(first):
    asked = journey()
    list(asked.take(frame(0, 0, [1])))
    with pytest.raises(Internal, match="RTPJ-5602 STREAM_OUT_OF_STEP"):
        list(asked.take(frame(0, first, [2])))
    assert asked.token_ids[0] == [1]


def test_prompt_logprobs_come_once():
    asked = journey(prompt_logprobs=0)
    table = pb.PositionLogprobs(tokens=[pb.TokenLogprob(token_id=6, logprob=-1.0, rank=1)])
    again = frame(0, 0, [])
    again.prompt_logprobs.extend([pb.PositionLogprobs(), table])
    asked.message()
    list(asked.take(again))
    asked.message()
    list(asked.take(again))
    assert [list(each or ()) for each in asked.collector.output.prompt_logprobs] == [[], [6]]


def test_an_error_ends_what_has_not_ended():
    asked = journey()
    list(asked.take(frame(0, 0, [1], finish_reason=pb.FINISH_REASON_STOP)))
    error = Unavailable("RTPJ-5603 WORKER_LOST: gone. Retry.")
    (end,) = asked.end("error", error)
    assert end.finished
    assert end.error is error
    assert end.outputs[0].index == 1


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        ([], "RTPJ-5607"),
        (["--worker", "nowhere"], "RTPJ-5604"),
        (["--members", "/does/not/exist"], "RTPJ-5605"),
        (["--worker", "a:1", "--policy", "best"], "RTPJ-1"),
    ],
)
def test_a_router_that_is_called_wrongly_says_so(capsys, arguments, id):
    assert main(["route", "rtp-tiny", *arguments]) == 2
    assert id in capsys.readouterr().err
