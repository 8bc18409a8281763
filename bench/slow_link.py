"""A link of a given speed, as two machines would have between them.

    python -m bench.slow_link HOST:PORT BYTES_PER_S

It relays TCP connections in a process of its own, whose port it says, and lets only so many bytes a
second come back from the target; what goes to the target is small and is not held up.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

CHUNK_BYTES = 64 << 10
BUFFER_BYTES = 256 << 10  # what a socket may hold, so that a sender notices the speed


@contextlib.contextmanager
def slow_link(address: str, bytes_per_s: float) -> Iterator[str]:
    """Yield an address that leads to another one over a link of a given speed."""
    command = [sys.executable, "-m", "bench.slow_link", address, str(bytes_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def main(address: str, bytes_per_s: str) -> None:
    """Relay until killed."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, far = listener.accept()[0], socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            far.connect((host, int(port)))
            for source, to, rate in ((near, far, float("inf")), (far, near, float(bytes_per_s))):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_forward, args=(source, to, rate), daemon=True).start()


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


if __name__ == "__main__":
    main(*sys.argv[1:])
