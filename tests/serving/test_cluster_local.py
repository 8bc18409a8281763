"""A cluster of processes on this machine: nothing that happens to a worker reaches a client.

Each request under load must get the tokens that it gets when nothing happens.
"""

import os
import signal
import socket
import time

import pytest

from tests.engine.workload import SMALL
from tests.serving.placed import Placed, as_json, content, under_load


@pytest.fixture
def up(tiny_model, program_cache, tmp_path):
    """Bring a cluster up; it ends with the test."""
    started = []

    def bring_up(counts, **more) -> Placed:
        made = Placed(content(tiny_model, program_cache, counts, SMALL, **more), tmp_path)
        started.append(made)
        made.until_ready(sum(counts.values()))
        return made

    yield bring_up
    for each in started:
        each.stop()


def ended(pid: int) -> bool:
    """Say whether a process is no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_worker_is_back_with_a_new_epoch_and_all_ends_with_down(up):
    placed = up({"both": 1})
    status = as_json(placed)
    before = placed.workers()["both-0"]
    assert status["ready"]
    assert before["layout"]
    os.kill(before["pid"], signal.SIGKILL)
    placed.until_again("both-0", before["epoch"], 1)
    after = placed.workers()["both-0"]
    assert (after["starts"], after["last_code"]) == (2, -9)
    pids = [each["pid"] for each in placed.replicas().values()]
    placed.down()
    assert all(ended(pid) for pid in pids)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_worker_is_killed_under_load(up):
    placed = up({"both": 2})

    def kill():
        for name in ("both-0", "both-1"):
            one = placed.workers()[name]
            os.kill(one["pid"], signal.SIGKILL)
            placed.until_again(name, one["epoch"], 2)

    assert under_load(placed, kill) > 0
    placed.down()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_every_worker_of_every_role_is_restarted_under_load(up):
    placed = up({"prefill": 1, "decode": 2})

    def restart():
        before = placed.workers()
        answer = placed.run("restart")
        assert answer.returncode == 0, answer.stderr
        for name, one in before.items():
            assert placed.workers()[name]["epoch"] not in ("", one["epoch"])
        placed.until_ready(3)

    assert under_load(placed, restart) > 0
    assert all(each["last_code"] == 0 for each in placed.workers().values())
    assert all(each["starts"] == 2 for each in placed.workers().values())
    placed.down()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_scaling_up_and_down_under_load(up):
    placed = up({"both": 1})

    def scale():
        for count in (2, 1):
            answer = placed.run("scale", f"both={count}")
            assert answer.returncode == 0, answer.stderr
            placed.until_ready(count)

    assert under_load(placed, scale) > 0
    assert [*placed.workers()] == ["both-0"]
    placed.down()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_cannot_start_is_reported_and_the_rest_serves(up, tmp_path):
    placed = up({"both": 1}, restarts={"max_starts": 2, "first_s": 0.1})
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    answer = placed.run("up", str(tmp_path / "cluster.yaml"))
    assert answer.returncode == 1
    assert "RTPJ-5621" in answer.stderr
    file = tmp_path / "broken.yaml"
    text = (tmp_path / "cluster.yaml").read_text().replace("name: placed", "name: broken")
    file.write_text(text.replace("ports:\n  - 0", f"ports:\n  - {taken.getsockname()[1]}"))
    answer = placed.run("up", str(file), "--detach")
    assert answer.returncode == 1
    assert "RTPJ-5629 CLUSTER_INCOMPLETE" in answer.stderr
    assert "router-0 failed" in answer.stderr
    assert "RTPJ-5205" in answer.stderr
    assert placed.run("down", "--name", "broken").returncode == 0
    taken.close()
    placed.down()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_a_killed_controller_started_ends(up):
    placed = up({"both": 1})
    pids = [each["pid"] for each in placed.replicas().values()]
    placed.popen.kill()
    placed.popen.wait()
    assert not placed.folder.alive
    until = time.monotonic() + 60
    while not all(ended(pid) for pid in pids):
        assert time.monotonic() < until, "something stays behind"
        time.sleep(0.05)
