"""Two ends of a direct transport in one process, without jax: honest, or as bad as a test wants."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rtp_jax.transfer.direct import DirectFailed
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.direct_give import Giving
from rtp_jax.transfer.direct_take import Taking


@dataclass
class FakeEnd:
    """Holds arrays in a dictionary that everybody who connects reads."""

    protocol: str = "fake 1"
    host: str = "127.0.0.1"
    held: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    reads: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # the other end's `held`
    hang: bool = False  # pulls wait until their link ends
    deaf: bool = False  # ... and do not notice even that
    fail: bool = False
    failure: type[Exception] = DirectFailed  # what that gives rise to
    bad_sweeps: int = 0  # that fail before one works
    damage: bool = False
    connected: list[tuple[str, int]] = field(default_factory=list)
    links: list["FakeLink"] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)  # lets the deaf go
    sweeps: int = 0
    renewals: int = 0
    closed: bool = False

    def give(self, array_id: int, payloads: Sequence[bytes | memoryview], keep_s: float) -> int:
        """Hold bytes."""
        if self.fail:
            raise self.failure("no memory")
        self.held[array_id] = (b"".join(payloads), time.monotonic() + keep_s)
        return 7 + self.renewals

    def sweep(self) -> None:
        """Drop what is late."""
        self.sweeps += 1
        if self.sweeps <= self.bad_sweeps:
            raise RuntimeError("no memory")
        now_s = time.monotonic()
        for array_id in [key for key, (_, until_s) in self.held.items() if until_s <= now_s]:
            del self.held[array_id]

    def renew(self) -> None:
        """Count it."""
        self.renewals += 1

    def connect(self, host: str, port: int) -> "FakeLink":
        """Reach the other end."""
        if self.fail:
            raise DirectFailed(f"nobody at {host}, port {port}")
        self.connected.append((host, port))
        self.links.append(FakeLink(self))
        return self.links[-1]

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class FakeLink:
    """Reads what the other end holds."""

    def __init__(self, end: FakeEnd):
        self._end, self.ended = end, threading.Event()

    def pull(self, array_id: int, num_bytes: int, timeout_s: float) -> memoryview:
        """Return bytes, or wait as long as the test wants."""
        end = self._end
        if end.deaf:
            end.free.wait(30)
        elif end.hang:
            self.ended.wait(30)
        if end.hang or end.deaf:
            raise DirectFailed("the link was ended")
        data, _ = end.reads.pop(array_id, (b"", 0.0))
        if len(data) != num_bytes:
            raise DirectFailed(f"{len(data)} bytes are there of {num_bytes}")
        return memoryview(bytes(len(data)) if end.damage else data)

    def end(self) -> None:
        """Wake those that listen."""
        self.ended.set()


def direct(end: FakeEnd, *, max_bytes: int = 1 << 20, keep_s: float = 5.0, max_stuck: int = 2):
    """Make what an engine has of a transport."""
    return Direct(
        end, Giving(end, max_bytes=max_bytes, keep_s=keep_s), Taking(end, max_stuck=max_stuck)
    )
