"""One replica: a worker or a router that should be there, through all its lives.

    waiting -> pending -> starting -> serving
       ^          |          |           |  asked to leave: draining -> gone
       |          |          |           |  asked to restart: restarting
       '----------+- death --+-----------'
    starting ... death, several times in a row, or called wrongly -> failed

After a death the next life waits: longer each time, never longer than `restarts.longest_s`.  One
that never served is given up after `restarts.max_starts` deaths, with its last words kept.
"""

import dataclasses
import enum
from collections.abc import Sequence

from rtp_jax.errors import RtpError
from rtp_jax.serving.cluster.spec import Group, Restarts
from rtp_jax.serving.cluster.supervisor import Launch, Life, Look, NoRoomYet, Phase, Supervisor
from rtp_jax.serving.cluster.worker_facts import Asking, Facts

USAGE = 2  # exit code of a command that was called wrongly: no restart repairs that


class State(enum.StrEnum):
    """What a replica does now."""

    WAITING = "waiting"  # for its next life
    PENDING = "pending"  # for room
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # for good
    RESTARTING = "restarting"  # it drains, and comes back
    FAILED = "failed"
    GONE = "gone"


ENDING = {State.DRAINING, State.RESTARTING}
LIVING = {State.PENDING, State.STARTING, State.SERVING, *ENDING}
STATE_OF = {
    Phase.PENDING: State.PENDING,
    Phase.STARTING: State.STARTING,
    Phase.SERVING: State.SERVING,
}


class Replica:
    """What is known of one replica; `step` moves it on."""

    def __init__(
        self, launch: Launch, group: Group | None, supervisor: Supervisor, restarts: Restarts
    ):
        self.launch, self.group = launch, group
        self.state = State.WAITING
        self.num_starts = 0
        self.facts: Facts | None = None  # of this life, once it serves; of workers only
        self.seen = Look(Phase.PENDING)
        self.error = ""  # why a worker that serves has not said who it is
        self.last_words: Sequence[str] = ()  # of the life before
        self.last_code: int | None = None  # with which it ended, if anybody knows
        self.life: Life | None = None
        self._supervisor, self._restarts = supervisor, restarts
        self._next_s = 0.0
        self._began_s = self._served_s = self._ending_s = 0.0
        self._num_deaths = 0  # in a row: a long life forgets them
        self._num_failures = 0  # deaths in a row without having served

    @property
    def name(self) -> str:
        """Its name."""
        return self.launch.name

    @property
    def leaving(self) -> bool:
        """True if it was asked to leave."""
        return self.state in (State.DRAINING, State.GONE)

    def step(self, now_s: float, asking: Asking, *, drain_s: float) -> None:
        """Look at it, and do what is due."""
        if self.state == State.WAITING and now_s >= self._next_s:
            self._start(now_s)
        if self.life is None or self.state not in LIVING:
            return
        self.seen = self.life.look()
        if self.seen.phase == Phase.ENDED:
            self._ended(now_s)
        elif self.state in ENDING:
            if now_s - self._ending_s > drain_s:
                self.life.kill()
        else:
            self._moved_on(now_s, asking)

    def restart(self, now_s: float) -> None:
        """Let it finish what it has and end, and start again at once."""
        if self.life is not None and self.state == State.SERVING:
            self.life.end()
            self.state, self._ending_s, self.facts = State.RESTARTING, now_s, None

    def leave(self, now_s: float) -> None:
        """Let it finish what it has and end, for good."""
        if self.leaving:
            return
        if self.life is not None and self.state == State.RESTARTING:
            self.state = State.DRAINING  # it drains already; told twice, it would end at once
        elif self.life is not None and self.state in LIVING:
            self.life.end()
            self.state, self._ending_s = State.DRAINING, now_s
        else:
            self.state = State.GONE
        self.facts = None

    def kill(self) -> None:
        """End it at once, for good."""
        if self.life is not None:
            self.life.kill()
        self.state, self.facts = State.GONE, None

    def _start(self, now_s: float) -> None:
        self._began_s, self._served_s = now_s, 0.0
        self.num_starts += 1
        try:
            self.life = self._supervisor.start(self.launch)
        except (NoRoomYet, OSError) as reason:  # the system may have no room for a process
            self.num_starts -= 1
            self.last_words, self.last_code = (str(reason),), None
            self._next_s = now_s + self._restarts.first_s
            return
        except RtpError as error:
            self.life, self.state, self.last_words = None, State.FAILED, (str(error),)
            return
        self.state = State.PENDING

    def _moved_on(self, now_s: float, asking: Asking) -> None:
        """A life goes on: it starts, or serves."""
        assert self.life is not None
        before, self.state = self.state, STATE_OF[self.seen.phase]
        if before == State.PENDING and self.state != State.PENDING:
            self._began_s = now_s
        if self.state == State.STARTING and self._is_late(now_s):
            self.life.kill()
        if self.state != State.SERVING:
            return
        if not self._served_s:
            self._served_s, self._num_failures = now_s, 0
            # A router keeps its address: its clients have it.
            if self.group is None and not self.launch.port:
                self._keep_port()
        if now_s - self._served_s > self._restarts.healthy_s:
            self._num_deaths = 0
        if self.group is not None and self.facts is None:
            life = f"{self.name} {self.num_starts}"
            self.facts = asking.facts_of(life, self.seen.address, now_s)
            self.error = asking.error_of(life)
            if self.facts is None and now_s - self._served_s > self._restarts.start_timeout_s:
                self.life.kill()  # nobody can use it; perhaps the next one says it
                asking.forget(life)

    def _is_late(self, now_s: float) -> bool:
        """A worker takes too long to start; a router waits for workers as long as it takes."""
        return self.group is not None and now_s - self._began_s > self._restarts.start_timeout_s

    def _keep_port(self) -> None:
        port = int(self.seen.address.rpartition(":")[2])
        self.launch = dataclasses.replace(self.launch, port=port)

    def _ended(self, now_s: float) -> None:
        assert self.life is not None
        self.life.kill()  # which frees what it holds
        self.life, self.facts = None, None
        self.last_words, self.last_code = self.seen.last_words, self.seen.code
        if self.error:
            self.last_words = *self.last_words, f"it did not say who it is: {self.error}"
            self.error = ""
        if self.state == State.DRAINING:
            self.state = State.GONE
            return
        # We let it drain, or somebody else did.
        asked_to = self.state == State.RESTARTING or (self.seen.code == 0 and self._served_s)
        self._num_deaths += not asked_to
        self._num_failures += not self._served_s
        restarts = self._restarts
        if self.seen.code == USAGE or self._num_failures >= restarts.max_starts:
            self.state = State.FAILED
            return
        delay_s = 0 if asked_to else restarts.first_s * 2.0 ** min(self._num_deaths - 1, 60)
        self.state, self._next_s = State.WAITING, now_s + min(delay_s, restarts.longest_s)
