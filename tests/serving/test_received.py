"""What a client with several targets keeps of an answer, and asks of the next one."""

import pytest

from rtp_jax.errors import AlreadyExists, InvalidArgument, Unavailable
from rtp_jax.serving.client import Client
from rtp_jax.serving.received import Received, parsed_targets
from rtp_jax.wire import generation_pb2 as pb

LOST = Unavailable("RTPJ-5101 SERVER_UNREACHABLE: gone. Look.")


def request(**fields) -> pb.GenerateRequest:
    """Ask for two completions."""
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), **fields)
    made.sampling.n = 2
    return made


def frame(index: int, ids: list[int], logprob: float, **fields) -> pb.GenerateFrame:
    """Make a frame of one completion."""
    made = pb.GenerateFrame()
    made.completions.add(index=index, token_ids=ids, cumulative_logprob=logprob, **fields)
    return made


def test_one_target_is_one_try_and_changes_no_request():
    assert parsed_targets("a:1") == ("a:1",)
    received = Received(request(), 1)
    assert received.request == request()
    with pytest.raises(Unavailable):
        received.rest(LOST)


def test_the_rest_is_asked_for_under_one_id_with_all_tokens():
    received = Received(request(timeout_s=10.0), 2)
    name = received.request.request_id
    assert name
    received.take(frame(0, [7, 8], -1.0))
    received.take(frame(1, [9], -0.5, finish_reason=pb.FINISH_REASON_STOP))
    rest = received.rest(LOST)
    assert rest.request_id == name
    assert [list(each.ids) for each in rest.resume.output] == [[7, 8], [9]]
    assert 0 < rest.timeout_s < 10.0
    again = frame(0, [10], -0.25)
    again.completions.add(index=1, finish_reason=pb.FINISH_REASON_STOP)  # it has ended before
    new = received.take(again)
    assert [(part.index, part.cumulative_logprob) for part in new.completions] == [(0, -1.25)]
    assert received.take(frame(1, [], 0.0)) is None
    rest = received.rest(LOST)
    assert list(rest.resume.output[0].ids) == [7, 8, 10]
    assert received.take(frame(0, [11], -0.5)).completions[0].cumulative_logprob == -1.75


def test_a_request_that_moves_says_so_although_nothing_had_come():
    received = Received(request(), 2)
    assert not received.request.HasField("resume")
    assert [list(each.ids) for each in received.rest(LOST).resume.output] == [[], []]


def test_prompt_logprobs_that_came_are_not_shown_again():
    received = Received(request(), 2)
    first = pb.GenerateFrame(prompt_logprobs=[pb.PositionLogprobs()] * 3)
    assert len(received.take(first).prompt_logprobs) == 3
    received.rest(LOST)
    again = pb.GenerateFrame(prompt_logprobs=[pb.PositionLogprobs()] * 2)
    assert len(received.take(again).prompt_logprobs) == 0
    again = pb.GenerateFrame(prompt_logprobs=[pb.PositionLogprobs()] * 4)
    assert len(received.take(again).prompt_logprobs) == 3


def test_what_is_wrong_with_a_request_is_no_reason_to_move_and_tries_end():
    received = Received(request(), 2)
    wrong = InvalidArgument("RTPJ-2001 PROMPT_EMPTY: no. Do.", field="prompt")
    live = AlreadyExists("RTPJ-4005 DUPLICATE_ID: live. Wait.", field="request_id")
    for error in (wrong, live):
        with pytest.raises(type(error)):
            received.rest(error)
    received.rest(LOST)
    received.rest(live)  # the router before is not known to be gone yet
    for _ in range(received._tries_left - 1):
        received.rest(LOST)
    with pytest.raises(Unavailable):
        received.rest(LOST)


def test_a_client_needs_an_address():
    with pytest.raises(InvalidArgument, match=r"RTPJ-1003 .* names no server"):
        Client([])
