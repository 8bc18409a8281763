"""Makes what is there into what is wanted, again and again.

    wanted (the file, then `scale` and `down`) --> replicas --> supervisor: processes or Ray actors
                                                      |
    routers <-- file of members: {role, address, epoch, layout}

A worker is published when it serves and has said who it is, and withdrawn before it is told to end,
so that routers send it nothing new while it finishes what it has.  Routers end before workers do.
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rtp_jax.config import ENVIRONMENT_PREFIX
from rtp_jax.serving.cluster.replica import LIVING, Replica, State
from rtp_jax.serving.cluster.spec import ROUTER, Group, Spec, secrets_of
from rtp_jax.serving.cluster.supervisor import Launch, Supervisor
from rtp_jax.serving.cluster.worker_facts import Asking
from rtp_jax.serving.members import Member
from rtp_jax.serving.settings import flag

DRAIN_MARGIN_S = 15.0  # after its own drain_timeout_s, a replica is ended
DRAIN_S = 30.0  # drain_timeout_s of those that were told nothing else
# What goes first when there are too many: whoever serves nobody, then whoever came last.
LEAST_USE = (State.FAILED, State.WAITING, State.PENDING, State.STARTING)
LEAST_USE += (State.RESTARTING, State.SERVING)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What changed since the file of the cluster was read."""

    counts: Mapping[str, int]  # by group
    down: bool = False
    num_restarts: int = 0  # of all workers, one after the other, asked for so far


@dataclass(frozen=True, slots=True)
class Supervisors:
    """Who runs what; routers are always here, where the file of members is."""

    workers: Supervisor
    routers: Supervisor


class Controller:
    """All replicas of a cluster."""

    def __init__(
        self,
        spec: Spec,
        supervisors: Supervisors,
        asking: Asking,
        publish: Callable[[Sequence[Member]], None],
        members_path: str,
        *,
        one_first: bool = False,
    ):
        """Prepare; `publish` writes the file of members that `members_path` names.

        With `one_first`, one worker starts alone: the others then load what it has compiled.
        """
        self.spec = spec
        self._one_first = one_first
        self.wanted = Wanted({group.name: group.count for group in spec.groups})
        self._supervisors, self._asking = supervisors, asking
        self._publish = publish
        self._published: list[Member] | None = None
        self._num_restarts = 0  # that were begun
        self._to_restart: list[Replica] = []  # once all others serve
        self._numbers = {group.name: itertools.count() for group in spec.groups}
        self.workers: list[Replica] = []
        self.routers = [
            Replica(launch, None, supervisors.routers, spec.restarts)
            for launch in router_launches(spec, members_path)
        ]

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return [*self.routers, *self.workers]

    @property
    def rolling(self) -> bool:
        """True while workers still have to be restarted."""
        return bool(self._to_restart) or self._num_restarts < self.wanted.num_restarts

    @property
    def gone(self) -> bool:
        """True if nothing is left."""
        return self.wanted.down and all(each.state == State.GONE for each in self.replicas)

    @property
    def ready(self) -> bool:
        """True if all that is wanted serves, and routers can know it."""
        counted = {group.name: 0 for group in self.spec.groups}
        for each in self.workers:
            if each.group is not None and each.facts is not None:
                counted[each.group.name] += 1
        serving = all(each.state == State.SERVING for each in self.routers)
        return serving and counted == dict(self.wanted.counts)

    def step(self, now_s: float) -> None:
        """Do what is due."""
        self._count(now_s)
        self._roll(now_s)
        for each in self.replicas:
            if self._may_move(each):
                chosen = each.group.options if each.group else self.spec.routers.options
                each.step(now_s, self._asking, drain_s=drain_s(chosen) + DRAIN_MARGIN_S)
        self.workers = [each for each in self.workers if each.state != State.GONE]
        self._say()

    def kill(self) -> None:
        """End everything at once."""
        for each in self.replicas:
            each.kill()

    def _count(self, now_s: float) -> None:
        """Start and end replicas so that there are as many as wanted."""
        if self.wanted.down:
            self._end(self.routers, now_s)
            if all(each.state == State.GONE for each in self.routers):
                self._end(self.workers, now_s)
            return
        for group in self.spec.groups:
            have = [each for each in self.workers if each.group is group and not each.leaving]
            count = self.wanted.counts[group.name]
            for _ in range(count - len(have)):
                self._add(group)
            have.reverse()
            have.sort(key=lambda each: LEAST_USE.index(each.state))
            self._end(have[: max(len(have) - count, 0)], now_s)

    def _roll(self, now_s: float) -> None:
        """Restart the next worker once all others serve."""
        if self._num_restarts < self.wanted.num_restarts:
            self._num_restarts = self.wanted.num_restarts
            self._to_restart = list(self.workers)
        self._to_restart = [
            each
            for each in self._to_restart
            if each in self.workers and not each.leaving and each.state != State.FAILED
        ]
        if not self._to_restart or not self.ready:
            return
        try:
            self._say(without=self._to_restart[:1])
        except OSError:  # the next step tries again, and says so
            return
        self._to_restart.pop(0).restart(now_s)

    def _may_move(self, replica: Replica) -> bool:
        """Say whether a replica may start, if it is about to."""
        if not self._one_first or replica.group is None or replica.state != State.WAITING:
            return True
        if any(each.state == State.SERVING for each in self.workers):
            self._one_first = False
            return True
        return not any(each.state in LIVING for each in self.workers)

    def _add(self, group: Group) -> None:
        name = f"{group.name}-{next(self._numbers[group.name])}"
        hidden = secrets_of(group.options)
        options = {key: value for key, value in group.options.items() if key not in hidden}
        arguments = ("serve", self.spec.model, "--role", group.role, *flags(options))
        environment = {variable(key): value for key, value in hidden.items()}
        launch = Launch(
            name,
            arguments,
            group.resources,
            port_wait_s=drain_s(group.options) + DRAIN_MARGIN_S,
            environment=environment,
        )
        supervisor = self._supervisors.workers
        self.workers.append(Replica(launch, group, supervisor, self.spec.restarts))

    def _end(self, replicas: Sequence[Replica], now_s: float) -> None:
        """Withdraw replicas, then let them finish and end; also if the file cannot be written."""
        leaving = [each for each in replicas if not each.leaving]
        if leaving:
            with contextlib.suppress(OSError):  # routers see, too, that they drain
                self._say(without=leaving)
        for each in leaving:
            each.leave(now_s)

    def _say(self, without: Sequence[Replica] = ()) -> None:
        """Publish the workers that serve, if they are others than before."""
        members = [
            Member(each.seen.address, each.group.role, each.facts.epoch, each.facts.layout)
            for each in self.workers
            if each.facts is not None and each.group is not None and each not in without
        ]
        if members != self._published:
            self._publish(members)
            self._published = members


def router_launches(spec: Spec, members_path: str) -> list[Launch]:
    """Say how the routers are started."""
    options = spec.routers.options
    words = ("route", spec.model, "--members", members_path, *flags(options))
    wait_s = drain_s(options) + DRAIN_MARGIN_S
    return [
        Launch(f"{ROUTER}-{number}", words, port=port, port_wait_s=wait_s)
        for number, port in enumerate(spec.routers.ports)
    ]


def drain_s(options: Mapping[str, object]) -> float:
    """Say how long a replica with some options may take to finish what it has."""
    chosen = options.get("drain_timeout_s", DRAIN_S)
    assert isinstance(chosen, int | float)
    return float(chosen)


def variable(name: str) -> str:
    """Spell an option as a variable of the environment."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def flags(options: Mapping[str, object]) -> tuple[str, ...]:
    """Spell options as flags of the command line."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif value is None:
            words += [flag(name), "none"]
        else:
            words += [flag(name), str(value)]
    return tuple(words)
