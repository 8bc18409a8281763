"""The server as put together: address, TLS, reflection, pings."""

import asyncio
import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from rtp_jax import errors
from rtp_jax.config import ServerConfig
from rtp_jax.metrics import Metrics
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import Tls
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.server import Server
from rtp_jax.wire import generation_pb2 as pb
from rtp_jax.wire.generation_pb2_grpc import GenerationStub
from tests.serving.certificates import make_authority, make_certificate


def assembled(**options) -> None:
    """Put a server together, which is never started."""

    async def assemble() -> None:
        config = ServerConfig(port=0, **options)
        Server(config, GenerationService(config), Metrics())

    asyncio.run(assemble())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    for authority in ("ca", "other"):
        make_authority(folder, authority)
    make_certificate(folder, "server", "ca")
    make_certificate(folder, "client", "ca")
    make_certificate(folder, "stranger", "other")
    return folder


def test_a_second_server_on_the_port_is_an_error(running, servers):
    with pytest.raises(errors.FailedPrecondition, match="RTPJ-5205 ADDRESS_UNAVAILABLE"):
        servers.start(port=running.server.port)


def test_a_port_of_somebody_else_is_an_error(servers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(errors.FailedPrecondition, match="RTPJ-5205"):
            servers.start(port=taken.getsockname()[1])


def test_calls_that_wait_for_a_busy_server_are_not_cut(running):
    busy, number = threading.Event(), 2000  # more than grpc lets wait by itself
    running.loop.call_soon_threadsafe(busy.wait, 30)
    with grpc.insecure_channel(running.address) as channel:
        ask = GenerationStub(channel).GetServerInfo
        calls = [ask.future(pb.GetServerInfoRequest(), timeout=60) for _ in range(number)]
        busy.set()
        assert [call.code() for call in calls] == [grpc.StatusCode.OK] * number


def test_beyond_loopback_wants_tls():
    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(errors.InvalidArgument, match="RTPJ-5204 ADDRESS_NEEDS_TLS"):
            assembled(host=host)


def test_beyond_loopback_without_tls_if_one_insists(servers):
    running = servers.start(host="0.0.0.0", insecure=True)
    with Client(running.address) as client:
        assert client.is_serving()


def test_ipv6(servers):
    running = servers.start(host="::1")
    with Client(f"[::1]:{running.server.port}") as client:
        assert client.is_serving()


@pytest.mark.capability("TLS and tokens")
def test_tls(servers, certificates):
    options = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    running = servers.start(**{name: str(path) for name, path in options.items()})
    address = f"localhost:{running.server.port}"
    with Client(address, tls=Tls(ca=str(certificates / "ca.pem"))) as client:
        assert client.generate("hello").outputs[0].text == "hell"
    for tls in (Tls(ca=str(certificates / "other.pem")), None):
        with Client(address, tls=tls) as client, pytest.raises(errors.Unavailable) as raised:
            client.model_info()
        assert raised.value.id == "RTPJ-5101"


@pytest.mark.capability("TLS and tokens")
def test_mtls(servers, certificates):
    names = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    running = servers.start(**{name: str(certificates / file) for name, file in names.items()})
    address = f"localhost:{running.server.port}"

    def client(who: str | None) -> Client:
        paths = {} if who is None else {"cert": f"{who}.pem", "key": f"{who}.key"}
        paths = {name: str(certificates / file) for name, file in paths.items()}
        return Client(address, tls=Tls(ca=str(certificates / "ca.pem"), **paths))

    with client("client") as known:
        assert known.model_info().name == "fake"
    for who in (None, "stranger"):
        with client(who) as unknown, pytest.raises(errors.Unavailable):
            unknown.model_info()


def test_certificates_are_renewed(servers, certificates, tmp_path):
    for suffix in ("pem", "key"):
        (tmp_path / f"a.{suffix}").write_bytes((certificates / f"server.{suffix}").read_bytes())
    running = servers.start(tls_cert=str(tmp_path / "a.pem"), tls_key=str(tmp_path / "a.key"))
    address = f"localhost:{running.server.port}"
    with Client(address, tls=Tls(ca=str(certificates / "ca.pem"))) as client:
        assert client.is_serving()
    for suffix in ("pem", "key"):
        (tmp_path / f"a.{suffix}").write_bytes((certificates / f"stranger.{suffix}").read_bytes())
    with Client(address, tls=Tls(ca=str(certificates / "other.pem"))) as client:
        assert client.is_serving()


@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"tls_cert": "server.pem"}, "RTPJ-5206 TLS_INCOMPLETE"),
        ({"tls_key": "server.key"}, "RTPJ-5206"),
        ({"tls_client_ca": "ca.pem"}, "RTPJ-5206"),
        ({"tls_cert": "nothing.pem", "tls_key": "server.key"}, "RTPJ-5207 TLS_FILE_INVALID"),
        ({"tls_cert": "extensions", "tls_key": "server.key"}, "RTPJ-5207"),
        ({"tls_cert": "server.pem", "tls_key": "."}, "RTPJ-5207"),
    ],
)
def test_wrong_files_of_tls(certificates, options, id):
    with pytest.raises(errors.InvalidArgument, match=id):
        assembled(**{name: str(certificates / file) for name, file in options.items()})


def test_a_client_says_which_file_it_cannot_read():
    with pytest.raises(errors.InvalidArgument, match="RTPJ-5110 CLIENT_TLS_FILE"):
        Client("localhost:1", tls=Tls(ca="no/such/file"))


@pytest.mark.capability("gRPC")
def test_reflection(running):
    with grpc.insecure_channel(running.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = database.get_services()
        assert "rtp_jax.generation.v1.Generation" in names
        assert "grpc.health.v1.Health" in names
        file = database.FindFileContainingSymbol("rtp_jax.generation.v1.GenerateRequest")
        assert file.package == "rtp_jax.generation.v1"


def test_reflection_can_be_off(servers):
    running = servers.start(reflection=False)
    channel = grpc.insecure_channel(running.address)
    with channel, pytest.raises(grpc.RpcError) as raised:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_health_is_told_to_whoever_watches(servers):
    running = servers.start(engine=False)
    with grpc.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        running.run(running.server.health.say(True, ""))
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        service = health_pb2.HealthCheckRequest(service="rtp_jax.generation.v1.Generation")
        assert stub.Check(service).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_many_pings_during_a_silence_are_fine(running):
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    request = pb.GenerateRequest(text="slow", sampling=pb.SamplingParams(max_tokens=150))
    with grpc.insecure_channel(running.address, options) as channel:
        generate = channel.unary_unary("/rtp_jax.generation.v1.Generation/Generate")
        began = time.monotonic()
        assert generate(request.SerializeToString(), timeout=30)  # silent until the end
        assert time.monotonic() - began > 2.5
