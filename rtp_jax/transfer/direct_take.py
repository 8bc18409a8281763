r"""Bytes from a peer by a way that may never answer: nobody waits longer than he wants to.

    pull in a thread of its own --- in time ------------------> bytes
        \__ late: the link is ended --- the thread ends ------> given up
                \__ it does not: stuck, with its thread and its bytes, until it ends by itself

Whoever was let down takes the pages in frames, at once.  A peer that let somebody down is suspect:
nothing is pulled from it in this way for a while, and after a stuck pull not before its next life.
Stuck pulls are counted and bounded: when there are too many, or any at the end, the process is to
retire (`retires`), because only its end gives their memory back.
"""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from rtp_jax.errors import Unavailable
from rtp_jax.transfer.direct import DirectEnd, DirectFailed, DirectLink

logger = logging.getLogger(__name__)
LOOK_S = 0.05  # between looks at whether somebody still wants the bytes
GRACE_S = 0.25  # that a pull has to end after its link has
WATCH_S = 0.1  # between looks at what nobody waits for
SUSPECT_S = 60.0
MAX_LINKS = 64


@dataclass(frozen=True, slots=True)
class Giver:
    """A peer in one of its lives."""

    address: str  # HOST:PORT of its service
    epoch: str
    host: str  # where bytes wait; its greeting says it
    port: int = 0  # ... and each frame says this


class Wish(Protocol):
    """Somebody's wish that others stop."""

    def is_set(self) -> bool:
        """True once he wishes it."""
        ...


@dataclass(slots=True)
class TakenCounts:
    """What became of pulls."""

    failed: int = 0  # did not come, or not in time
    stuck: int = 0  # at present
    stuck_bytes: int = 0  # that these may hold


@dataclass(slots=True, eq=False)
class _Pull:
    """A pull with its own thread."""

    link: DirectLink
    giver: Giver
    array_id: int
    num_bytes: int
    until_s: float  # time.monotonic()
    ended: threading.Event = field(default_factory=threading.Event)
    came: memoryview | None = None
    failure: str = "it ended without a reason"
    given_up_s: float | None = None
    stuck: bool = False

    def run(self) -> None:
        """Pull; the body of the thread."""
        try:
            left_s = max(self.until_s - time.monotonic(), 1e-3)
            self.came = self.link.pull(self.array_id, self.num_bytes, left_s)
        except DirectFailed as error:
            self.failure = str(error)
        finally:
            self.ended.set()

    def is_stuck(self, now_s: float) -> bool:
        """Tell whether it goes on although its link was ended a while ago, which is news."""
        given_up_s = now_s if self.given_up_s is None else self.given_up_s
        return not self.stuck and given_up_s + GRACE_S <= now_s


class Taking:
    """Pulls from peers, under a watchdog; every method may be called from any thread."""

    def __init__(self, end: DirectEnd, *, max_stuck: int):
        """Pull nothing yet; `max_stuck` pulls that cannot be ended retire the process."""
        self.end = end
        self.counts = TakenCounts()
        self.retires: str | None = None  # why, once and for all
        self._max_stuck = max_stuck
        self._links: OrderedDict[Giver, DirectLink] = OrderedDict()
        self._suspects: OrderedDict[str, tuple[str, float]] = OrderedDict()  # epoch, until
        self._left: list[_Pull] = []  # pulls for which nobody waits
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def may_ask(self, giver: Giver) -> bool:
        """Say whether bytes may be pulled from a peer in this way."""
        with self._changed:
            epoch, until_s = self._suspects.get(giver.address, ("", 0.0))
            suspect = epoch == giver.epoch and time.monotonic() < until_s
            return not (suspect or self._closed or self.retires)

    def take(
        self, giver: Giver, array_id: int, num_bytes: int, until_s: float, stop: Wish
    ) -> memoryview:
        """Return bytes that a peer holds; waits until a time, or until `stop` is set.

        Raises:
          DirectFailed: they did not come; the peer is suspect.
        """
        pull = self._begun(giver, array_id, num_bytes, until_s)
        while not pull.ended.wait(min(LOOK_S, max(until_s - time.monotonic(), 0.0))):
            if time.monotonic() >= until_s:
                self._give_up(pull)
                raise DirectFailed(f"{num_bytes} bytes did not come in time")
            if stop.is_set():
                self._leave(pull)
                raise DirectFailed("nobody wants them any more")
        if pull.came is None:
            self._fail(giver, pull.failure, SUSPECT_S)
            raise DirectFailed(pull.failure)
        return pull.came

    def suspect(self, giver: Giver, reason: str) -> None:
        """Ask a peer no more in this way for a while, because of what came."""
        self._fail(giver, reason, SUSPECT_S)

    def close(self) -> None:
        """End the watchdog and what still waits; pulls that cannot be ended are reported.

        Nobody may be in `take` any more, or his pull is not seen.
        """
        with self._changed:
            self._closed = True
            self._links.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()
        waiting = [pull for pull in self._left if not pull.ended.is_set()]
        for pull in waiting:
            if pull.given_up_s is None:
                _end(pull)
        until_s = time.monotonic() + GRACE_S
        for pull in waiting:
            pull.ended.wait(max(until_s - time.monotonic(), 0.0))
        with self._changed:
            for pull in waiting:
                pull.stuck = True
            self._count_stuck()
            if self.counts.stuck:
                self._retire()

    def _begun(self, giver: Giver, array_id: int, num_bytes: int, until_s: float) -> _Pull:
        try:
            link = self._link(giver)
        except DirectFailed as error:
            self._fail(giver, str(error), SUSPECT_S)
            raise
        pull = _Pull(link, giver, array_id, num_bytes, until_s)
        threading.Thread(target=pull.run, name="rtp-direct-pull", daemon=True).start()
        return pull

    def _link(self, giver: Giver) -> DirectLink:
        with self._changed:
            link = self._links.get(giver)
        link = link or self.end.connect(giver.host, giver.port)
        with self._changed:
            link = self._links.setdefault(giver, link)
            self._links.move_to_end(giver)
            while len(self._links) > MAX_LINKS:
                self._links.popitem(last=False)
            return link

    def _fail(self, giver: Giver, reason: str, for_s: float, *, more: int = 1) -> None:
        with self._changed:
            self.counts.failed += more
            before = self._suspects.pop(giver.address, ("", 0.0))
            until_s = time.monotonic() + for_s
            if before[0] == giver.epoch:
                until_s = max(until_s, before[1])
            self._suspects[giver.address] = (giver.epoch, until_s)
            while len(self._suspects) > MAX_LINKS:
                self._suspects.popitem(last=False)
            self._links.pop(giver, None)  # one that has failed may be of no more use
        logger.warning("nothing from %s over the direct transport: %s", giver.address, reason)

    def _give_up(self, pull: _Pull) -> None:
        """Wait for a late pull no more; the watchdog sees whether it ends now."""
        self._fail(pull.giver, "it did not come in time", SUSPECT_S)
        _end(pull)
        self._leave(pull)

    def _leave(self, pull: _Pull) -> None:
        """Let the watchdog look after a pull."""
        with self._changed:
            if pull not in self._left:
                self._left.append(pull)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="rtp-direct", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _watch(self) -> None:
        """Look after pulls for which nobody waits; the body of the watchdog's thread."""
        while True:
            with self._changed:
                if self._closed:
                    return
                self._left = [pull for pull in self._left if not pull.ended.is_set()]
                now_s = time.monotonic()
                late = [pull for pull in self._left if pull.given_up_s is None]
                late = [pull for pull in late if pull.until_s <= now_s]
                stuck = [pull for pull in self._left if pull.is_stuck(now_s)]
                self._count_stuck()
                if not (late or stuck):
                    self._changed.wait(WATCH_S if self._left else None)
                    continue
            for pull in late:
                self._give_up(pull)
            for pull in stuck:
                self._stick(pull)

    def _stick(self, pull: _Pull) -> None:
        """Count a pull that cannot be ended."""
        self._fail(pull.giver, "a pull cannot be ended", float("inf"), more=0)
        with self._changed:
            pull.stuck = True
            self._count_stuck()
            if self.counts.stuck >= self._max_stuck:
                self._retire()

    def _count_stuck(self) -> None:
        stuck = [pull for pull in self._left if pull.stuck and not pull.ended.is_set()]
        self.counts.stuck = len(stuck)
        self.counts.stuck_bytes = sum(pull.num_bytes for pull in stuck)

    def _retire(self) -> None:
        if self.retires is None:
            reason = Unavailable(
                f"RTPJ-4315 DIRECT_PULLS_STUCK: {self.counts.stuck} pulls over the direct transport"
                f" hold {self.counts.stuck_bytes} bytes and cannot be ended (kv_transport_stuck="
                f"{self._max_stuck}): this worker drains and ends. Start it again, with"
                " kv_transport=grpc if it happens often."
            )
            self.retires = str(reason)
            logger.error("%s", reason)


def _end(pull: _Pull) -> None:
    """End the link of a pull that is given up, without waiting for that."""
    pull.given_up_s = time.monotonic()
    threading.Thread(target=pull.link.end, name="rtp-direct-end", daemon=True).start()
