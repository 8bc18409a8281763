"""What a controller does when a disk is full, the system refuses, or a worker says nothing."""

import time

import pytest

from rtp_jax.errors import Unavailable
from rtp_jax.serving.cluster.controller import Wanted
from rtp_jax.serving.cluster.replica import State
from tests.serving.test_cluster_controller import Run


@pytest.fixture
def run():
    made = Run()
    yield made
    made.asking.close()


def replica_of(run, name):
    return next(each for each in run.controller.workers if each.name == name)


def test_a_worker_that_never_says_who_it_is_is_started_again(run):
    def mute(address):
        raise Unavailable("RTPJ-5101 SERVER_UNREACHABLE: no. Retry.")

    run.asking._ask = mute
    run.step()
    life = run.workers.of("dec-0")
    life.serve()
    run.step()
    until = time.monotonic() + 10
    while not (replica := replica_of(run, "dec-0")).error:
        assert time.monotonic() < until
        run.step()
    run.step(49.0)
    assert not life.was_killed
    run.step(2.0)
    assert life.was_killed
    run.step()
    assert (replica.state, replica.error) == (State.WAITING, "")
    assert "RTPJ-5101" in replica.last_words[-1]


@pytest.fixture
def full_disk(run):
    """Say with `full_disk(True)` that nothing can be published."""
    publish, full = run.controller._publish, []

    def refuse(members):
        if full:
            raise OSError("no space left")
        publish(members)

    run.controller._publish = refuse
    return lambda yes: full.append(1) if yes else full.clear()


def test_on_a_full_disk_what_should_leave_leaves(run, full_disk):
    run.all_serve()
    full_disk(True)
    run.controller.wanted = Wanted({"pre": 1, "dec": 1})
    with pytest.raises(OSError, match="no space left"):
        run.step()
    assert run.workers.of("dec-1").was_told_to_end
    full_disk(False)
    run.step()
    assert len(run.members) == 2


def test_on_a_full_disk_a_rolling_restart_waits_and_forgets_nobody(run, full_disk):
    run.all_serve()
    full_disk(True)
    run.controller.wanted = Wanted({"pre": 1, "dec": 2}, num_restarts=1)
    run.step(times=3)
    assert not any(life.was_told_to_end for life in run.workers.living)
    full_disk(False)
    run.step()
    assert run.workers.of("pre-0").was_told_to_end


def test_a_start_that_the_system_refuses_holds_nobody_up(run, monkeypatch):
    start = run.workers.start

    def refuse(launch):
        if launch.name == "pre-0":
            raise OSError("cannot allocate memory")
        return start(launch)

    monkeypatch.setattr(run.workers, "start", refuse)
    run.step()
    assert run.workers.names() == ["dec-0", "dec-1"]
    replica = replica_of(run, "pre-0")
    assert (replica.state, replica.last_words) == (State.WAITING, ("cannot allocate memory",))
    monkeypatch.setattr(run.workers, "start", start)
    run.step(1.0)
    assert run.workers.names() == ["dec-0", "dec-1", "pre-0"]


def test_a_worker_that_does_not_answer_is_not_published(run):
    def mute(address):
        raise Unavailable("RTPJ-5101 SERVER_UNREACHABLE: no. Retry.")

    run.asking._ask = mute
    run.step()
    run.workers.of("dec-0").serve()
    for _ in range(20):
        run.step(1.0)
        time.sleep(0.005)
    assert run.members == []
    assert run.state("dec-0") == State.SERVING
    assert "RTPJ-5101" in replica_of(run, "dec-0").error
    run.asking._ask = run._facts
    for _ in range(1000):
        run.step(0.02)
        time.sleep(0.002)
        if run.members:
            break
    assert len(run.members) == 1
