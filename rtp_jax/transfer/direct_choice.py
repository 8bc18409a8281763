"""Do two workers move bytes of pages directly?  If both were started so, and can reach each other.

Each says in its greeting where its bytes wait, which need not be where its service is.  Whoever
takes bytes connects from his own such address.  Where that cannot be done, as from 127.0.0.1 to
another machine or from IPv4 to IPv6, jax's transfer server ends the process of whoever tries; so
it is found out here, by both.
"""

from dataclasses import dataclass

from rtp_jax.transfer.direct import DirectEnd
from rtp_jax.transfer.direct_give import Giving
from rtp_jax.transfer.direct_take import Taking
from rtp_jax.transfer.hosts import can_connect, host_of, is_loopback
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
    return pb.DirectTransport(protocol=end.protocol, host=end.host)


def disagreement(own: Direct | None, theirs: pb.DirectTransport) -> str:
    """Say why pages go in frames to somebody who asked for another way; '' if they need not."""
    if own is None:
        return "this worker was started with kv_transport=grpc"
    if theirs.protocol != own.end.protocol:
        return f"{own.end.protocol!r} here and {theirs.protocol[:80]!r} there"
    return _apart(own.end.host, theirs.host)


def out_of_reach(own: DirectEnd, address: str, theirs: pb.DirectTransport) -> str:
    """Say why bytes that wait with whose service is at an address are not fetched; '': they are."""
    if is_loopback(theirs.host) and not is_loopback(host_of(address)):
        return f"its kv_transport_host is {theirs.host[:80]}, which only its own machine reaches"
    return _apart(own.host, theirs.host)


def _apart(here: str, there: str) -> str:
    if can_connect(here, there):
        return ""
    return f"kv_transport_host is {here!r} here and {there[:80]!r} there, which cannot be connected"
