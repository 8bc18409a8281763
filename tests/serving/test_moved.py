"""A request that was elsewhere before: it goes on behind its tokens, and no client sees a seam."""

import time

import grpc
import pytest

from rtp_jax import errors
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.status import error_of
from rtp_jax.wire import generation_pb2 as pb
from tests.serving.routers import LONG, check_same, collected


def raw(routed: Client, **fields):
    """Ask for 50 tokens as other clients do; returns the running call."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 20), **fields)
    request.sampling.max_tokens, request.sampling.ignore_eos = 50, True
    return routed._stubs[0].GenerateStream(request)


def test_a_request_goes_on_where_its_worker_stopped(router, engines, routed, direct):
    """The worker is there and says nothing more: its requests move, with what was sent."""
    expected = collected(direct.stream([5] * 20, LONG))
    for _ in range(4):
        stream = routed.stream([5] * 20, LONG)
        first = next(stream)

        async def cut():
            for link in router.engine.workers.links.values():
                link.let_go("a test wants it")

        router.run(cut())
        check_same(collected([first, *stream]), expected)
    assert router.engine.num_resumed >= 1


def test_usage_and_numbers_of_frames_know_of_no_seam(router, routed):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 20))
    request.sampling.max_tokens, request.sampling.ignore_eos = 250, True
    frames = []
    for frame in routed._stubs[0].GenerateStream(request):
        frames.append(frame)
        if len(frames) == 2:

            async def cut():
                for link in router.engine.workers.links.values():
                    link.let_go("a test wants it")

            router.run(cut())
    assert [frame.sequence for frame in frames] == list(range(len(frames)))
    have = 0
    for part in (part for frame in frames for part in frame.completions):
        assert part.first_token == have
        have += len(part.token_ids)
    assert have == 250
    assert frames[-1].usage.output_tokens == 250
    assert frames[-1].usage.prompt_tokens == 20


def test_a_router_that_slept_itself_blames_nobody(router, routed):
    expected = collected(routed.stream([5] * 20, LONG))

    async def sleep_hard():
        time.sleep(2.0)  # longer than `worker_silent_s`

    stream = routed.stream([5] * 20, LONG)
    first = next(stream)
    router.run(sleep_hard())
    check_same(collected([first, *stream]), expected)
    assert router.engine.num_resumed == 0


def test_a_request_that_moved_waits_for_its_former_self(workers, routed):
    """Both workers still have it, for a router that was left."""
    options = RequestOptions(request_id="elsewhere")
    with Client(workers[0].address) as one, Client(workers[1].address) as two:
        former = [each.stream([5] * 20, LONG, options) for each in (one, two)]
        for stream in former:
            next(stream)
        with pytest.raises(errors.AlreadyExists, match="RTPJ-4005"):
            routed.generate([5] * 20, LONG, options)
        nothing_yet = pb.Resume(output=[pb.TokenIds()])
        call = raw(routed, request_id="elsewhere", resume=nothing_yet)
        time.sleep(0.1)
        for stream in former:
            stream.close()
        assert sum(len(part.token_ids) for frame in call for part in frame.completions) == 50


def test_output_of_too_few_completions_is_refused_though_it_is_empty(routed):
    call = raw(routed, resume=pb.Resume(output=[pb.TokenIds(), pb.TokenIds()]))
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    error = error_of(refused.value)
    assert (error.id, error.field) == ("RTPJ-2007", "resume")
