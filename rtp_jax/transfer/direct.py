"""The bytes of pages by another way than frames: what must that way offer?

    giver                                        taker
    end.give(id, payloads, keep_s)
    a frame that names pages and the id  ----->  link.pull(id) in a watched thread
                                                 digests are checked, as those of frames are

Offers, leases, epochs, identities and digests stay in messages.  Such a way may lose bytes and may
never return; so whoever takes sets a time, and takes the pages in frames when it has passed.
Read next: `direct_choice.py` for who uses it, `direct_give.py`, `direct_take.py`;
`runner/direct_server.py` for the one such way there is.
"""

from collections.abc import Sequence
from typing import Protocol

Payload = bytes | memoryview


class DirectFailed(Exception):
    """Bytes that did not come this way; they may come in frames."""


class DirectLink(Protocol):
    """A way to the bytes of one peer; any thread may use it, several at a time."""

    def pull(self, array_id: int, num_bytes: int, timeout_s: float) -> memoryview:
        """Wait for bytes, longer than `timeout_s` if it must be, or for ever.

        Raises:
          DirectFailed: they will not come.
        """
        ...

    def end(self) -> None:
        """Try to make all pulls fail that still wait, for good."""
        ...


class DirectEnd(Protocol):
    """This process's end of all such ways; any thread may use it."""

    @property
    def protocol(self) -> str:
        """What must be equal on both sides."""
        ...

    @property
    def host(self) -> str:
        """Where what it gives waits: an address by number."""
        ...

    def give(self, array_id: int, payloads: Sequence[Payload], keep_s: float) -> int:
        """Hold bytes, end to end, until they are pulled or a sweep finds their time over.

        Returns the port at which they wait.

        Raises:
          DirectFailed: they cannot be held.
        """
        ...

    def sweep(self) -> None:
        """Drop what was given and whose time is over."""
        ...

    def renew(self) -> None:
        """Give from another place from now on; what was given before waits where it is."""
        ...

    def connect(self, host: str, port: int) -> DirectLink:
        """Make a link; whether anybody is there shows when it is used.

        Raises:
          DirectFailed: there is no such address, or this end is closed.
        """
        ...

    def close(self) -> None:
        """Drop what is held; nothing is given after that."""
        ...
