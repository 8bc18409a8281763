"""Bearer tokens: every method wants one, health does not, and the file says who may call."""

import grpc
import pytest

from rtp_jax import errors
from rtp_jax.serving.auth import BearerAuth, read_tokens
from rtp_jax.serving.client import Client
from rtp_jax.wire import generation_pb2 as pb
from tests.serving.raw import SERVICE, Raw
from tests.serving.started import Servers

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["Generation"].methods]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    file = tmp_path_factory.mktemp("auth") / "tokens"
    file.write_text("# who may call\n\nfirst-token\nsecond-token\n")
    started = Servers()
    yield started.start(auth_token_file=str(file))
    started.stop()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("token", "id"), [(None, "RTPJ-5201"), ("wrong", "RTPJ-5202"), ("first-toke", "RTPJ-5202")]
)
def test_every_method_wants_a_token(guarded, method, token, id):
    raw = Raw(guarded.address, token)
    code, error, _, _ = raw.send(method, b"")
    assert (code, error.id) == (grpc.StatusCode.UNAUTHENTICATED, id)
    assert isinstance(error, errors.Unauthenticated)
    raw.close()


def test_reflection_wants_a_token_too(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            list(channel.stream_stream(REFLECTION)(iter([b""]), timeout=10))
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.capability("TLS and tokens")
@pytest.mark.parametrize("token", ["first-token", "second-token"])
def test_a_right_token_is_let_in(guarded, token):
    with Client(guarded.address, token=token) as client:
        assert client.generate("hello").finished
        assert len(list(client.stream("hello"))) == 4


def test_health_needs_none(guarded):
    with Client(guarded.address) as client:
        assert client.is_serving()


@pytest.mark.parametrize(
    ("header", "id"),
    [
        ("first-token", "RTPJ-5201"),
        ("Basic first-token", "RTPJ-5201"),
        ("Bearer", "RTPJ-5201"),
        ("Bearer ", "RTPJ-5202"),
        ("bearer first-token", None),
        ("Bearer  first-token ", None),
    ],
)
def test_what_counts_as_a_token(header, id):
    error = BearerAuth(["first-token"]).obstacle({"authorization": header})
    assert (error.id if error else None) == id
    if error:
        assert "first-token" not in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n\n", b"short\n", "tökentöken".encode(), b"\xff\xfe", b"a\x07bcdefgh"],
)
def test_a_file_without_a_good_token_is_an_error(tmp_path, content):
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(errors.InvalidArgument, match="RTPJ-5203 TOKEN_FILE_INVALID"):
        read_tokens(str(file))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(errors.InvalidArgument, match="RTPJ-5203"):
            read_tokens(str(path))
    (tmp_path / "huge").write_bytes(b"a" * (1 << 21))
    with pytest.raises(errors.InvalidArgument, match="RTPJ-5203"):
        read_tokens(str(tmp_path / "huge"))


def test_methods_are_named_as_in_the_descriptor():
    assert SERVICE == "/rtp_jax.generation.v1.Generation/"
