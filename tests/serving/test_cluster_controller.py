"""What a controller does about deaths, counts and the end, with processes that are only words."""

import sys
import time

import pytest

from rtp_jax.serving.cluster.controller import Controller, Supervisors, Wanted
from rtp_jax.serving.cluster.replica import State
from rtp_jax.serving.cluster.spec import Group, Ray, Resources, Restarts, Routers, Spec
from rtp_jax.serving.cluster.worker_facts import Asking, Facts
from rtp_jax.serving.members import Member
from tests.serving.fake_supervisor import FakeSupervisor

RESTARTS = Restarts(first_s=1.0, longest_s=8.0, healthy_s=100.0, max_starts=3, start_timeout_s=50.0)
GROUPS = (
    Group("pre", "prefill", 1, Resources(), {"max_num_seqs": 4}),
    Group("dec", "decode", 2, Resources(), {"drain_timeout_s": 5.0}),
)
SPEC = Spec("c", "rtp-tiny", "local", GROUPS, Routers((50050, 0)), RESTARTS, Ray())


class Run:
    """A controller, a clock and what it published."""

    def __init__(self, *, one_first=False, **supervisor):
        self.workers, self.routers = FakeSupervisor(**supervisor), FakeSupervisor()
        self.published: list[list[Member]] = []
        self.lives_asked = 0
        self.asking = Asking(self._facts)
        self.now_s = 1000.0
        supervisors = Supervisors(workers=self.workers, routers=self.routers)
        publish = lambda members: self.published.append(list(members))  # noqa: E731
        self.controller = Controller(
            SPEC, supervisors, self.asking, publish, "/m.yaml", one_first=one_first
        )

    def _facts(self, address: str) -> Facts:
        self.lives_asked += 1
        return Facts(f"epoch of {address}", "aa")

    def step(self, seconds: float = 0.0, times: int = 1) -> None:
        for _ in range(times):
            self.now_s += seconds
            self.controller.step(self.now_s)

    def settle(self) -> None:
        """Step until whoever serves has been asked."""
        until = time.monotonic() + 10
        while any(
            each.state == State.SERVING and not each.facts for each in self.controller.workers
        ):
            assert time.monotonic() < until
            self.step()

    def all_serve(self) -> None:
        self.step()
        for life in (*self.workers.living, *self.routers.living):
            life.serve()
        self.step()
        self.settle()
        self.step()

    @property
    def members(self) -> list[Member]:
        return self.published[-1]

    def state(self, name: str) -> State:
        return next(each.state for each in self.controller.replicas if each.name == name)


@pytest.fixture
def run():
    made = Run()
    yield made
    made.asking.close()


def test_everything_starts_and_is_published_with_epoch_and_layout(run):
    run.step()
    assert run.workers.names() == ["dec-0", "dec-1", "pre-0"]
    assert run.routers.names() == ["router-0", "router-1"]
    assert run.members == []
    assert not run.controller.ready
    run.all_serve()
    assert run.controller.ready
    address = "127.0.0.1:10000"
    assert run.members[0] == Member(address, "prefill", f"epoch of {address}", "aa")
    assert [each.role for each in run.members] == ["prefill", "decode", "decode"]
    assert run.lives_asked == 3
    count = len(run.published)
    run.step(1.0, times=10)
    assert (len(run.published), run.lives_asked) == (count, 3)


def test_a_launch_says_role_model_options_and_port(run):
    run.step()
    arguments = run.workers.of("pre-0").launch.arguments
    assert arguments == ("serve", "rtp-tiny", "--role", "prefill", "--max-num-seqs", "4")
    router = run.routers.of("router-0").launch
    assert router.arguments == ("route", "rtp-tiny", "--members", "/m.yaml")
    assert router.port == 50050
    assert router.port_wait_s == 30.0 + 15.0  # as long as the router of before may drain
    run.all_serve()
    port = int(run.routers.of("router-1").seen.address.split(":")[1])
    run.routers.of("router-1").die()
    run.step()
    run.step(1.0)
    assert run.routers.of("router-1").launch.port == port  # its clients know it


def test_a_password_is_in_no_list_of_processes(monkeypatch):
    url, plain = "redis://:hush@h:1/0", "redis://h:1/0"
    groups = (
        Group("a", "both", 1, Resources(), {"kv_remote_url": url, "max_num_seqs": 4}),
        Group("b", "both", 1, Resources(), {"kv_remote_url": plain}),
    )
    spec = Spec("c", "rtp-tiny", "local", groups, Routers(), RESTARTS, Ray())
    monkeypatch.setattr(sys.modules[__name__], "SPEC", spec)
    run = Run()
    run.step()
    secret, open_to_all = run.workers.of("a-0").launch, run.workers.of("b-0").launch
    assert secret.arguments[-2:] == ("--max-num-seqs", "4")
    assert "hush" not in str(secret.arguments)
    assert secret.environment == {"RTP_JAX_KV_REMOTE_URL": url}
    assert open_to_all.arguments[-2:] == ("--kv-remote-url", plain)
    assert not open_to_all.environment
    run.asking.close()


def test_a_death_is_withdrawn_and_restarted_with_a_new_epoch(run):
    run.all_serve()
    dead = run.members[1]
    first = run.workers.of("dec-0")
    first.die(-9, "last words")
    run.step()
    assert dead not in run.members
    assert first.was_killed  # so that what it held is free
    assert run.state("dec-0") == State.WAITING
    assert run.workers.of("dec-0") is first
    run.step(1.0)
    run.workers.of("dec-0").serve()
    run.step()
    run.settle()
    run.step()
    fresh = next(each for each in run.members if each.address.endswith("10003"))
    assert fresh.epoch == "epoch of 127.0.0.1:10003"
    assert run.controller.ready


def test_restarts_wait_longer_and_longer_and_never_too_long(run):
    run.all_serve()
    waits = []
    for _ in range(6):
        run.workers.of("dec-0").die()
        run.step()
        began, life = run.now_s, run.workers.of("dec-0")
        while run.workers.of("dec-0") is life:
            run.step(0.5)
        waits.append(run.now_s - began)
        run.workers.of("dec-0").serve()
        run.step()
    assert waits == [1, 2, 4, 8, 8, 8]
    run.step(101.0)  # a long life has a clean record
    run.workers.of("dec-0").die()
    run.step()
    run.step(1.0)
    assert run.workers.of("dec-0") in run.workers.living


def test_one_that_drained_by_itself_is_back_at_once(run):
    run.all_serve()
    for _ in range(3):
        run.workers.of("dec-0").die()
        run.step()
        run.step(8.0)
        run.workers.of("dec-0").serve()
        run.step()
    run.workers.of("dec-0").die(0)
    run.step(times=2)
    assert run.workers.of("dec-0") in run.workers.living


def test_one_that_never_serves_is_given_up_with_its_last_words(run):
    run.step()
    for _ in range(RESTARTS.max_starts):
        run.workers.of("pre-0").die(1, "no such device")
        run.step(10.0, times=2)
    assert run.state("pre-0") == State.FAILED
    replica = run.controller.workers[0]
    assert (replica.last_words, replica.last_code) == (("no such device",), 1)
    assert replica.num_starts == 3
    run.step(10.0, times=20)
    assert replica.num_starts == 3


def test_one_that_was_called_wrongly_is_not_called_again(run):
    run.step()
    run.workers.of("pre-0").die(2, "rtp-jax: RTPJ-1001 OPTION_UNKNOWN")
    run.step()
    assert run.state("pre-0") == State.FAILED


def test_one_that_starts_too_slowly_is_ended_and_counts_as_a_death(run):
    run.step(0.0, times=2)
    life = run.workers.of("pre-0")
    run.step(49.0)
    assert not life.was_killed
    run.step(2.0)
    assert life.was_killed
    run.step()
    assert run.state("pre-0") == State.WAITING
    assert not run.routers.of("router-0").was_killed  # routers wait for workers


def test_what_cannot_be_started_says_why():
    run = Run(room=2)
    run.step()
    states = [each.state for each in run.controller.workers]
    assert states.count(State.FAILED) == 1
    failed = run.controller.workers[states.index(State.FAILED)]
    assert "RTPJ-5624 NO_ROOM_HERE" in failed.last_words[0]
    run.asking.close()


def test_what_takes_the_room_of_one_that_drains_waits_for_it():
    run = Run(room=3)
    run.all_serve()
    run.controller.wanted = Wanted({"pre": 0, "dec": 3})
    run.step(1.0, times=5)
    assert (run.state("pre-0"), run.state("dec-2")) == (State.DRAINING, State.WAITING)
    replica = run.controller.workers[-1]
    assert (replica.last_words, replica.num_starts) == (("others end",), 0)
    run.workers.of("pre-0").die(0)
    run.step(1.0, times=2)
    run.workers.of("dec-2").serve()
    run.step(1.0)
    assert (run.state("dec-2"), replica.num_starts) == (State.SERVING, 1)
    run.asking.close()


def test_one_worker_starts_alone_and_compiles_for_the_others():
    run = Run(one_first=True)
    run.step(1.0, times=3)
    assert run.workers.names() == ["pre-0"]
    assert run.routers.names() == ["router-0", "router-1"]
    run.workers.of("pre-0").die(2)  # it never will: the next one has its turn
    run.step(1.0, times=3)
    assert run.workers.names() == ["dec-0"]
    run.workers.of("dec-0").serve()
    run.step(1.0, times=2)
    assert run.workers.names() == ["dec-0", "dec-1"]
    run.workers.of("dec-0").die()
    run.step(1.0)
    run.workers.of("dec-1").die()
    run.step(1.0, times=3)
    assert run.workers.names() == ["dec-0", "dec-1"]  # only the first time
    run.asking.close()


def test_scaling_up_adds_and_scaling_down_drains_the_newest(run):
    run.all_serve()
    run.controller.wanted = Wanted({"pre": 1, "dec": 4})
    run.step()
    assert run.workers.names() == ["dec-0", "dec-1", "dec-2", "dec-3", "pre-0"]
    run.workers.of("dec-2").serve()  # and dec-3 still starts
    run.step()
    run.settle()
    run.controller.wanted = Wanted({"pre": 1, "dec": 2})
    published = len(run.published)
    run.step()
    leaving = run.workers.of("dec-2"), run.workers.of("dec-3")
    assert [life.was_told_to_end for life in leaving] == [True, True]
    assert [life.was_killed for life in leaving] == [False, False]
    assert len(run.published) == published + 1  # withdrawn before they were told
    assert len(run.members) == 3
    assert run.state("dec-2") == State.DRAINING
    for life in leaving:
        life.die(0)
    run.step()
    assert [each.name for each in run.controller.workers] == ["pre-0", "dec-0", "dec-1"]
    assert run.controller.ready
    run.controller.wanted = Wanted({"pre": 1, "dec": 3})
    run.step()
    assert run.workers.names()[2] == "dec-4"  # a name is used once


def test_a_rolling_restart_takes_one_worker_after_the_other(run):
    run.all_serve()
    run.controller.wanted = Wanted({"pre": 1, "dec": 2}, num_restarts=1)
    for name in ("pre-0", "dec-0", "dec-1"):
        run.step(1.0, times=3)
        life = run.workers.of(name)
        told = [each for each in run.workers.living if each.was_told_to_end]
        assert told == [life]
        assert run.state(name) == State.RESTARTING
        assert len(run.members) == 2  # it was withdrawn
        assert run.controller.rolling == (name != "dec-1")  # more are to come
        life.die(0)
        run.step(times=2)
        assert run.workers.of(name) is not life  # at once
        run.step(1.0, times=3)
        assert not any(each.was_told_to_end for each in run.workers.living)
        run.workers.of(name).serve()
        run.step()
        run.settle()
    run.step(1.0, times=3)
    assert not run.controller.rolling
    assert len(run.workers.lives) == 6
    assert len(run.members) == 3


def test_one_that_drains_to_restart_is_not_told_again_when_it_should_leave(run):
    run.all_serve()
    run.controller.wanted = Wanted({"pre": 1, "dec": 2}, num_restarts=1)
    run.step()
    life = run.workers.of("pre-0")
    assert run.state("pre-0") == State.RESTARTING
    began_s = run.now_s
    run.controller.wanted = Wanted({"pre": 0, "dec": 2}, num_restarts=1)
    run.step(10.0)
    assert run.state("pre-0") == State.DRAINING
    assert life.times_told_to_end == 1  # a second SIGTERM ends a worker at once
    run.step(began_s + 30.0 + 14.0 - run.now_s)
    assert not life.was_killed
    run.step(2.0)
    assert life.was_killed  # its time began with the first word
    run.step()
    assert "pre-0" not in [each.name for each in run.controller.workers]


@pytest.mark.parametrize(
    ("name", "drain_s", "wanted"),
    [
        ("pre-0", 30.0, Wanted({"pre": 1, "dec": 2}, num_restarts=1)),
        ("dec-1", 5.0, Wanted({"pre": 1, "dec": 1})),
    ],
)
def test_what_does_not_finish_draining_is_ended(run, name, drain_s, wanted):
    """Whether it restarts or leaves."""
    run.all_serve()
    run.controller.wanted = wanted
    run.step()
    life = run.workers.of(name)
    run.step(drain_s + 14.0)
    assert not life.was_killed
    run.step(2.0)
    assert life.was_killed
    run.step(times=2)
    there = [each.name for each in run.controller.workers]
    assert (name in there) == (wanted.num_restarts > 0)
    assert name not in there or run.workers.of(name) is not life


def test_down_ends_routers_first_then_workers(run):
    run.all_serve()
    run.controller.wanted = Wanted({"pre": 1, "dec": 2}, down=True)
    run.step(times=3)
    assert all(life.was_told_to_end for life in run.routers.living)
    assert not any(life.was_told_to_end for life in run.workers.living)
    for life in run.routers.living:
        life.die(0)
    run.step(times=2)
    assert all(life.was_told_to_end for life in run.workers.living)
    assert run.members == []
    assert not run.controller.gone
    for life in run.workers.living:
        life.die(0)
    run.step()
    assert run.controller.gone
    assert run.workers.living == run.routers.living == []
