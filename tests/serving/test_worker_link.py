"""The connection to a worker outlives whatever it reports."""

import asyncio
import time
from concurrent import futures

import grpc
import pytest

from rtp_jax.router.facts import Role
from rtp_jax.serving.worker_link import Followers, State, WorkerLink
from rtp_jax.wire import router_pb2 as pb

GOOD = [
    pb.WorkerReport(facts=pb.WorkerFacts(role="decode", epoch="e")).SerializeToString(),
    pb.WorkerReport(load=pb.WorkerLoad(num_free_pages=3)).SerializeToString(),
]
BAD = {
    "no message": b"\xff\xff\xff",
    "no role": pb.WorkerReport(facts=pb.WorkerFacts(role="enc\u00f6de")).SerializeToString(),
}


@pytest.fixture
def reports():
    """Serve `Watch`: one list of reports for each call, and the last one for all that follow."""
    scripts: list[list[bytes]] = []

    def watch(_request, context):
        yield from scripts.pop(0) if len(scripts) > 1 else scripts[0]
        while context.is_active():
            time.sleep(0.01)

    method = grpc.unary_stream_rpc_method_handler(watch)  # without serializers: bytes
    service = "rtp_jax.router.v1.WorkerState"
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Watch": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", scripts
    server.stop(0).wait()


async def followed(address: str, until, within_s: float = 5.0):
    """Follow a worker until something is so; return what was said of it."""
    roles, lost = [], []
    followers = Followers(
        facts=lambda facts, _: roles.append(facts.role) or "",
        load=lambda *_: None,
        events=lambda *_: True,
        next_event=lambda _: 0,
        lost=lost.append,
    )
    link = WorkerLink(address, followers, token=None, tls=None)
    follow = asyncio.ensure_future(link.run())
    end_s = time.monotonic() + within_s
    while not until(link):
        assert time.monotonic() < end_s, (link.state, link.reason)
        assert not follow.done(), follow
        await asyncio.sleep(0.005)
    follow.cancel()
    await asyncio.gather(follow, return_exceptions=True)
    await link.close()
    return roles, lost


def test_garbled_reports_begin_anew(reports):
    address, scripts = reports
    scripts += [[BAD["no message"]], [GOOD[0], BAD["no message"]], GOOD]
    roles, _ = asyncio.run(followed(address, lambda link: link.state == State.STATE_SERVING))
    assert roles == [Role.DECODE] * 2


def test_a_role_that_is_not_known_is_a_reason_and_no_end(reports):
    address, scripts = reports
    scripts += [[*GOOD, BAD["no role"], GOOD[1]]]
    _, lost = asyncio.run(followed(address, lambda link: "role" in link.reason))
    assert lost == [address]
    scripts[:] = [[BAD["no role"], *GOOD]]
    roles, _ = asyncio.run(followed(address, lambda link: link.state == State.STATE_SERVING))
    assert roles == [Role.DECODE]
