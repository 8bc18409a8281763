"""Each fault of the proxy does what its name says, and as often as it was told."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fault_proxy import UP, Fault, FaultProxy


@contextlib.contextmanager
def answering(reply: bytes | None = None) -> Iterator[int]:
    """Listen, and answer each message with itself, or with one reply, until the client is gone."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(reply or data)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@contextlib.contextmanager
def connected(*faults: Fault, reply: bytes | None = None) -> Iterator[tuple]:
    with (
        answering(reply) as port,
        FaultProxy(port, *faults) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 5) as client,
    ):
        yield client, proxy


def said(client: socket.socket, data: bytes = b"hello") -> bytes:
    client.sendall(data)
    return client.recv(1 << 16)


def test_without_faults_everything_passes():
    with connected() as (client, proxy):
        assert [said(client, text) for text in (b"a", b"bc")] == [b"a", b"bc"]
        assert proxy.count == {"up": 2, "down": 2}


def frame(kind: int, body: bytes) -> bytes:
    """Make an HTTP/2 frame of stream 1."""
    return len(body).to_bytes(3, "big") + bytes([kind, 0]) + (1).to_bytes(4, "big") + body


def bits(data: bytes) -> int:
    return sum(byte.bit_count() for byte in data)


def test_every_third_chunk_is_flipped_by_one_bit_in_a_body_of_data():
    chunk = frame(1, b"\xff" * 40) + frame(0, bytes(8)) + frame(6, b"\xff" * 40)
    with connected(Fault(kind="flip", every=3)) as (client, proxy):
        answers = [said(client, chunk) for _ in range(6)]
    bodies = slice(49 + 9, 49 + 9 + 8)
    assert [bits(answer[bodies]) for answer in answers] == [0, 0, 1, 0, 0, 1]
    assert [bits(answer) - bits(chunk) for answer in answers] == [0, 0, 1, 0, 0, 1]
    assert proxy.applied["flip"] == 2


def test_frames_are_followed_through_any_cuts():
    stream = frame(0, bytes(5)) + frame(4, b"") + frame(1, b"\xff" * 3) + frame(0, bytes(30))
    with connected(Fault(kind="flip")) as (client, proxy):
        answers = b"".join(said(client, stream[at : at + 4]) for at in range(0, len(stream), 4))
    changed = {at for at, (a, b) in enumerate(zip(answers, stream, strict=True)) if a != b}
    assert changed <= {*range(9, 14), *range(len(stream) - 30, len(stream))}
    assert len(changed) == proxy.applied["flip"] == 10


def test_what_a_client_says_first_is_no_frame():
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with connected(Fault(kind="flip", direction=UP)) as (client, proxy):
        assert said(client, preface + frame(4, bytes(6))) == preface + frame(4, bytes(6))
        assert bits(said(client, frame(0, b""))) == bits(frame(0, b""))
        assert bits(said(client, frame(0, bytes(1)))) == bits(frame(0, bytes(1))) + 1
    assert proxy.applied["flip"] == 1


def test_a_reset_is_a_reset():
    with connected(Fault(kind="reset", after=1)) as (client, _):
        assert said(client) == b"hello"
        with pytest.raises(ConnectionResetError):
            said(client)


def test_a_truncated_answer_ends_in_its_middle():
    with connected(Fault(kind="truncate")) as (client, _):
        assert said(client, b"12345678") == b"1234"
        assert client.recv(9) == b""


def test_a_half_closed_connection_still_takes_what_is_sent():
    with connected(Fault(kind="half_close")) as (client, proxy):
        assert said(client) == b""
        client.sendall(b"more")
        until = time.monotonic() + 5
        while proxy.count[UP] < 2 and time.monotonic() < until:
            time.sleep(0.005)
        assert proxy.count[UP] == 2


def test_a_dropped_chunk_never_comes():
    with connected(Fault(kind="drop", every=2)) as (client, _):
        assert said(client, b"one") == b"one"
        client.sendall(b"two")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(9)


def test_a_delay_takes_its_time():
    with connected(Fault(kind="delay", delay_s=0.15, direction=UP)) as (client, _):
        began = time.monotonic()
        assert said(client) == b"hello"
        assert time.monotonic() - began >= 0.15


def test_a_throttled_answer_comes_at_its_rate():
    reply = bytes(60_000)
    with connected(Fault(kind="throttle", bytes_per_s=300_000), reply=reply) as (client, _):
        began, got = time.monotonic(), 0
        client.sendall(b"go")
        while got < len(reply):
            got += len(client.recv(1 << 16))
        assert time.monotonic() - began >= 0.18


def test_a_stopped_proxy_keeps_the_connection_and_passes_nothing():
    with connected() as (client, proxy):
        assert said(client) == b"hello"
        proxy.stopped = True
        client.sendall(b"later")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(9)
        proxy.stopped = False
        client.settimeout(5)
        assert client.recv(9) == b"later"


def test_all_connections_can_be_reset():
    with connected() as (client, proxy):
        assert said(client) == b"hello"
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            client.recv(9)
