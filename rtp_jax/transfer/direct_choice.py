"""Do two workers move bytes of pages directly?  If both were started so, with the same protocol."""

from dataclasses import dataclass

from rtp_jax.transfer.direct import DirectEnd
from rtp_jax.transfer.direct_give import Giving
from rtp_jax.transfer.direct_take import Taking
from rtp_jax.wire import kv_pb2 as pb


@dataclass(frozen=True, slots=True)
class Direct:
    """What an engine has of it."""

    end: DirectEnd
    giving: Giving
    taking: Taking

    def close(self) -> None:
        """Drop what is held, and end the threads that can be ended."""
        self.giving.close()
        self.taking.close()
        self.end.close()


def greeting(end: DirectEnd) -> pb.DirectTransport:
    """Spell what this side can do."""
    return pb.DirectTransport(protocol=end.protocol)


def disagreement(own: Direct | None, theirs: pb.DirectTransport) -> str:
    """Say why pages go in frames to somebody who asked for another way; '' if they need not."""
    if own is None:
        return "this worker was started with kv_transport=grpc"
    if theirs.protocol != own.end.protocol:
        return f"{own.end.protocol!r} here and {theirs.protocol[:80]!r} there"
    return ""
