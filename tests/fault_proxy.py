"""A TCP proxy that does to a connection what a bad network does, on purpose and on schedule.

    client -> [ FaultProxy(port, faults) ] -> server

A fault is applied to chunks: what one read brings.  `every` chooses every n-th chunk that goes in
its direction, counted over all connections, so that a test says exactly how much goes wrong.

Bits are flipped in the bodies of HTTP/2 DATA frames, which are what gRPC hands on.  Some damaged
frame headers end the whole process inside grpc's core (seen in 1.85: an unknown error code in
RST_STREAM), which no caller can prevent; only TLS keeps such damage away.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass

CHUNK_BYTES = 16 << 10
UP, DOWN = "up", "down"  # to the server, to the client
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4: what a client says first
FRAME_HEADER, DATA = 9, 0  # bytes of a frame's header, and a type (RFC 9113, section 4.1)
KINDS = ("delay", "drop", "reset", "half_close", "truncate", "flip", "throttle")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to every n-th chunk of a direction."""

    kind: str
    every: int = 1
    direction: str = DOWN
    delay_s: float = 0.0  # delay: of the chunk and all behind it
    bytes_per_s: float = 0.0  # throttle
    after: int = 0  # chunks that pass before the first fault

    def __post_init__(self):
        assert self.kind in KINDS, self.kind


class FaultProxy:
    """Listens on a free port of loopback, in a thread; use it as a context manager."""

    def __init__(self, target: int, *faults: Fault, seed: int = 0):
        self.faults = faults
        self.count = {UP: 0, DOWN: 0}
        self.applied = dict.fromkeys(KINDS, 0)
        self.stopped = False  # True: connections stay open and nothing passes
        self._target = target
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def reset_all(self) -> None:
        """Reset every connection."""
        self._run(self._reset_all())

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _end(self) -> None:
        self._server.close()
        await self._reset_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(5):  # turns in which sockets are closed
            await asyncio.sleep(0)

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, onward[1]}
        pumps = [self._pump(UP, reader, onward[1]), self._pump(DOWN, onward[0], writer)]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps, return_exceptions=True)
        for each in (writer, onward[1]):
            self._writers.discard(each)
            each.close()

    async def _pump(self, direction, reader, writer) -> None:
        """Pass one direction on until it ends, or a fault ends it."""
        frames = _Frames(len(PREFACE) if direction == UP else 0)
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                while self.stopped:
                    await asyncio.sleep(0.01)
                bodies = frames.bodies(data)
                data, goes_on = await self._through(direction, data, bodies, writer)
                if data:
                    writer.write(data)
                    await writer.drain()
                if not goes_on:
                    return
            if writer.can_write_eof():
                writer.write_eof()

    async def _through(
        self, direction, data: bytes, bodies: list[int], writer
    ) -> tuple[bytes, bool]:
        """Let the faults that are due do their work; return what is left, and if it goes on."""
        self.count[direction] += 1
        for fault in self.faults:
            number = self.count[direction] - fault.after
            if fault.direction != direction or number <= 0 or number % fault.every:
                continue
            if fault.kind == "flip" and not bodies:
                continue
            self.applied[fault.kind] += 1
            match fault.kind:
                case "delay":
                    await asyncio.sleep(fault.delay_s)
                case "throttle":
                    await asyncio.sleep(len(data) / fault.bytes_per_s)
                case "drop":
                    data = b""
                case "flip":
                    data = self._flipped(data, bodies)
                case "truncate":
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    writer.close()
                    return b"", False
                case "half_close":
                    writer.write_eof()
                    return b"", False
                case "reset":
                    _reset(writer)
                    return b"", False
        return data, True

    def _flipped(self, data: bytes, bodies: list[int]) -> bytes:
        flipped = bytearray(data)
        flipped[self._random.choice(bodies)] ^= 1 << self._random.randrange(8)
        return bytes(flipped)


class _Frames:
    """Follows the HTTP/2 frames of one direction of a connection."""

    def __init__(self, skip: int):
        self._skip = skip  # bytes before the first frame
        self._header = b""
        self._left, self._is_data = 0, False  # of the body of the frame

    def bodies(self, chunk: bytes) -> list[int]:
        """Say which positions of the next chunk lie in bodies of DATA frames."""
        at, found = min(self._skip, len(chunk)), []
        self._skip -= at
        while at < len(chunk):
            if self._left == 0:
                more = chunk[at : at + FRAME_HEADER - len(self._header)]
                self._header, at = self._header + more, at + len(more)
                if len(self._header) == FRAME_HEADER:
                    self._left = int.from_bytes(self._header[:3], "big")
                    self._is_data, self._header = self._header[3] == DATA, b""
                continue
            end = min(at + self._left, len(chunk))
            if self._is_data:
                found += range(at, end)
            self._left, at = self._left - (end - at), end
        return found


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
