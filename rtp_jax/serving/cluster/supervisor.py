"""Who runs the processes of a cluster?  One interface; `processes.py` and `ray_actors.py` are it.

A supervisor starts one life of a replica and says how it is.  It decides nothing: when to start,
restart and end is the controller's.  None of these calls waits.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rtp_jax.serving.cluster.spec import Resources

NUM_LAST_WORDS = 20
NO_RESOURCES = Resources(cpus=0)


class NoRoomYet(Exception):
    """Those who have the room were told to end, or have a port: the same start may work soon."""


class Phase(enum.StrEnum):
    """How far one life of a replica is."""

    PENDING = "pending"  # nobody has room for it yet
    STARTING = "starting"  # the process loads and compiles
    SERVING = "serving"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to be: arguments of `rtp-jax`, without a port and a host."""

    name: str  # of the replica; names its log, too
    arguments: tuple[str, ...]
    resources: Resources = NO_RESOURCES
    port: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)  # what no list of processes shows
    port_wait_s: float = 0.0  # for who has a port of it, and may drain, to end


@dataclass(frozen=True, slots=True)
class Look:
    """One life as it is now."""

    phase: Phase
    address: str = ""
    pages: str = ""  # where its metrics are, if it serves any
    code: int | None = None  # it ended with this one, if anybody knows
    last_words: Sequence[str] = ()


class Life(Protocol):
    """One life of a replica."""

    @property
    def pid(self) -> int:
        """Number of its process on its machine; 0: not known."""
        ...

    def look(self) -> Look:
        """Say how it is."""
        ...

    def end(self) -> None:
        """Let it finish what it has and end."""
        ...

    def kill(self) -> None:
        """End it at once, and free what it holds; it may have ended before."""
        ...


class Supervisor(Protocol):
    """Starts lives."""

    def start(self, launch: Launch) -> Life:
        """Start one life of a replica.

        Raises:
          RtpError: nothing like this can be started here, ever.
          NoRoomYet: it can once others have ended that were told to.
        """
        ...

    def close(self) -> None:
        """Let go of what runs the lives; they have ended."""
        ...
