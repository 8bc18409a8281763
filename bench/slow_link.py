"""A link of a given speed, as two machines would have between them.

It relays TCP connections in a process of its own and lets only so many bytes a second come back
from the target; what goes to the target is small and is not held up.
"""

import contextlib
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator

CHUNK_BYTES = 64 << 10
BUFFER_BYTES = 256 << 10  # what a socket may hold, so that a sender notices the speed


@contextlib.contextmanager
def slow_link(address: str, bytes_per_s: float) -> Iterator[str]:
    """Yield an address that leads to another one over a link of a given speed."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(
        target=_relay, args=(listener, address, bytes_per_s), daemon=True
    )
    process.start()
    listener.close()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _relay(listener: socket.socket, address: str, bytes_per_s: float) -> None:
    host, _, port = address.rpartition(":")
    while True:
        near = listener.accept()[0]
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        far.connect((host, int(port)))
        for source, target, rate in ((near, far, float("inf")), (far, near, bytes_per_s)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_forward, args=(source, target, rate), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, bytes_per_s: float) -> None:
    """Pass bytes on, each when a link that was free would have carried it."""
    free_at_s = 0.0
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            now_s = time.monotonic()
            free_at_s = max(free_at_s, now_s) + len(chunk) / bytes_per_s
            time.sleep(free_at_s - now_s)
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
