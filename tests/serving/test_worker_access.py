"""Between a router and its workers: TLS and a bearer token, and what a wrong one comes to."""

import pytest

from rtp_jax import SamplingParams, errors
from rtp_jax.serving.client import Client
from rtp_jax.serving.members import Member
from rtp_jax.serving.status_command import ask
from rtp_jax.wire import router_pb2 as pb
from tests.e2e.pair import until
from tests.serving.certificates import make_authority, make_certificate
from tests.serving.routers import started_router
from tests.serving.started import Servers

PARAMS = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
STATE = pb.WorkerStatus.State


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two authorities, a certificate of each, and files of tokens."""
    folder = tmp_path_factory.mktemp("access")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    make_certificate(folder, "server", "ca")
    make_certificate(folder, "stranger", "other")
    (folder / "tokens").write_text("the-router's-token\n")
    (folder / "changed").write_text("another-token\n")
    return folder


@pytest.fixture(scope="module")
def workers(real_engine, files):
    """Serve an engine as the router wants it, with another token, and as somebody unknown."""
    started = Servers()
    yield [
        started.start(
            real_engine,
            auth_token_file=str(files / tokens),
            tls_cert=str(files / f"{name}.pem"),
            tls_key=str(files / f"{name}.key"),
        )
        for name, tokens in (("server", "tokens"), ("server", "changed"), ("stranger", "tokens"))
    ]
    started.stop()


@pytest.fixture
def router(workers, files, tiny_model):
    """Return a router with a token and a CA, which the first worker likes."""
    options = {"worker_token_file": str(files / "tokens"), "worker_tls_ca": str(files / "ca.pem")}
    addresses = [worker.address for worker in workers]
    with started_router(tiny_model, addresses, **options) as running:
        yield running


def states(router) -> dict[str, tuple[int, str]]:
    """Say what the router thinks of its workers, and why."""
    return {each.address: (each.state, each.reason) for each in ask(router.address).workers}


def test_a_router_shows_its_token_and_says_who_refuses_it(router, workers, real_engine):
    good, bad, stranger = (worker.address for worker in workers)
    with Client(router.address) as client:
        output = client.generate("the page pool", PARAMS)
    (alone,) = real_engine.generate("the page pool", PARAMS, use_tqdm=False)
    assert output.outputs[0].token_ids == alone.outputs[0].token_ids
    assert until(lambda: "RTPJ-5202 TOKEN_WRONG" in states(router)[bad][1])
    assert states(router)[good][0] == STATE.STATE_SERVING
    assert states(router)[bad][0] == STATE.STATE_DOWN
    assert states(router)[stranger][0] == STATE.STATE_DOWN
    assert "RTPJ-5101 SERVER_UNREACHABLE" in states(router)[stranger][1]


def test_nobody_who_takes_the_token_is_a_typed_error(router, workers):
    router.set_members([Member(workers[1].address)])
    with (
        Client(router.address) as client,
        pytest.raises(errors.Unavailable, match="RTPJ-7004 NO_WORKER"),
    ):
        client.generate("the page pool", PARAMS)


def test_a_token_that_is_taken_no_more_is_the_routers_fault(router, workers, monkeypatch):
    """A client whose own token is right must not be told that it is wrong."""
    with Client(router.address) as client:
        client.generate("the page pool", PARAMS)  # the router follows its worker

        def refuse(*_):
            raise errors.Unauthenticated("RTPJ-5202 TOKEN_WRONG: no. Send another.")

        monkeypatch.setattr(workers[0].service, "outputs", refuse)
        with pytest.raises(errors.Unavailable, match=r"RTPJ-5603 WORKER_LOST.*RTPJ-5202"):
            client.generate("the page pool", PARAMS)
