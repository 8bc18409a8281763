"""Replicas as processes of this machine: their room, their words, their end."""

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from rtp_jax.errors import FailedPrecondition
from rtp_jax.serving.cluster import processes as processes_module
from rtp_jax.serving.cluster import tied
from rtp_jax.serving.cluster.processes import LocalSupervisor, Machine, OwnedProcess
from rtp_jax.serving.cluster.spec import Resources
from rtp_jax.serving.cluster.supervisor import Launch, NoRoomYet, Phase
from tests.serving.routers import until

MACHINE = Machine(cpus=2, gpus=("2", "5"), memory=1000)


def launch(name: str, **resources) -> Launch:
    return Launch(
        name,
        ("info", "nothing-like-it"),
        Resources(**{"cpus": 0.0} | resources),
        0,
        {"SEEN_BY_TEST": "yes"},
    )


@pytest.mark.parametrize("asked", [{"cpus": 1.5}, {"gpus": 2}, {"memory": 600}])
def test_more_than_the_machine_has_is_refused(tmp_path, asked):
    supervisor = LocalSupervisor(tmp_path, MACHINE)
    life = supervisor.start(launch("a", **asked))
    with pytest.raises(FailedPrecondition, match=f"RTPJ-5624 NO_ROOM_HERE.*{next(iter(asked))}"):
        supervisor.start(launch("b", **asked))
    life.end()
    with pytest.raises(NoRoomYet, match=f"b waits for {next(iter(asked))}"):
        supervisor.start(launch("b", **asked))
    twice = {name: 2 * number for name, number in asked.items()}
    with pytest.raises(FailedPrecondition, match="RTPJ-5624 NO_ROOM_HERE"):
        supervisor.start(launch("b", **twice))  # whoever ends
    life.kill()
    supervisor.start(launch("b", **asked)).kill()


@pytest.mark.parametrize("flag", [None, "--http-port", "--metrics-port"])
def test_who_listens_at_a_port_is_waited_for_and_not_for_ever(tmp_path, flag):
    """A controller that is started again may find the routers of the one before still draining."""
    supervisor = LocalSupervisor(tmp_path, MACHINE)
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        wanted = replace(launch("router-0"), port_wait_s=60.0, **({} if flag else {"port": port}))
        if flag:
            wanted = replace(wanted, arguments=(*wanted.arguments, flag, str(port)))
        for _ in range(2):
            with pytest.raises(NoRoomYet, match=f"router-0 waits for port {port}"):
                supervisor.start(wanted)
        supervisor.start(replace(wanted, port_wait_s=0.0)).kill()  # it says itself what is wrong
    supervisor.start(wanted).kill()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(NoRoomYet):
        supervisor.start(wanted)  # it waits anew


def test_gpus_are_those_that_were_left_to_us(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f,")
    assert Machine.this().gpus == ("3", "GPU-8f")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Machine.this().gpus == ()


def test_gpus_are_handed_out_by_name(tmp_path, monkeypatch):
    given = []

    class Process(OwnedProcess):
        def __init__(self, arguments, environment, log):
            given.append(environment["CUDA_VISIBLE_DEVICES"])
            assert environment["SEEN_BY_TEST"] == "yes"
            super().__init__(arguments, environment, log)

    monkeypatch.setattr("rtp_jax.serving.cluster.processes.OwnedProcess", Process)
    supervisor = LocalSupervisor(tmp_path, MACHINE)
    first = supervisor.start(launch("a", gpus=1))
    second = supervisor.start(launch("b", gpus=1))
    first.kill()
    third = supervisor.start(launch("c", gpus=1))
    none = supervisor.start(launch("d"))
    for life in (second, third, none):
        life.kill()
    assert given == ["2", "5", "2", ""]


def test_a_process_leaves_its_last_words_code_and_log(tmp_path):
    (tmp_path / "a.log").write_text("of the life before")
    life = LocalSupervisor(tmp_path, MACHINE).start(launch("a"))
    until(lambda: life.look().phase == Phase.ENDED, 60)
    seen = life.look()
    assert seen.code != 0
    assert "RTPJ-" in seen.last_words[-1]
    life.kill()
    assert "RTPJ-" in (tmp_path / "a.log").read_text()
    assert (tmp_path / "a.before.log").read_text() == "of the life before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_process_is_heard_although_its_log_cannot_be_written(tmp_path, monkeypatch):
    full = lambda _: Path("/dev/full").open("wb", buffering=0)  # noqa: E731, SIM115
    for log, fresh in ((tmp_path / "full", full), (tmp_path / "absent" / "log", None)):
        if fresh:
            monkeypatch.setattr(processes_module, "_fresh", fresh)
        process = OwnedProcess(["info", "nothing-like-it", "--port", "0"], {}, log)
        until(lambda process=process: process.look().phase == Phase.ENDED, 60)
        assert "RTPJ-" in process.look().last_words[-1]
        process.kill()
        monkeypatch.undo()


def test_processes_end_with_the_pipe_of_who_started_them(tmp_path):
    arguments = ["route", "rtp-tiny", "--worker", "127.0.0.1:1", "--port", "0"]
    process = OwnedProcess(arguments, {}, tmp_path / "log")
    until(lambda: process.look().address, 60)
    process._popen.stdin.close()
    until(lambda: process.look().phase == Phase.ENDED, 60)
    assert process.look().code == 0
    process.kill()


@pytest.mark.parametrize(("said", "signals"), [(b"", ["SIGTERM", "SIGKILL"]), (b"d", ["SIGKILL"])])
def test_what_drains_already_is_not_told_again_when_its_starter_dies(monkeypatch, said, signals):
    sent = []
    monkeypatch.setattr(tied.os, "kill", lambda pid, number: sent.append(number.name))
    monkeypatch.setattr(tied.time, "sleep", sent.append)
    reader, writer = os.pipe()
    os.write(writer, said)
    os.close(writer)
    tied.watch(reader)
    os.close(reader)
    assert [each for each in sent if isinstance(each, str)] == signals
    assert sent[-2:] == [tied.LONGEST_DRAIN_S, "SIGKILL"]


def test_a_process_is_told_once_to_end_and_says_so_in_the_pipe(tmp_path):
    arguments = ["route", "rtp-tiny", "--worker", "127.0.0.1:1", "--port", "0"]
    process, sent = OwnedProcess(arguments, {}, tmp_path / "log"), []
    until(lambda: process.look().address, 60)
    send = process._popen.send_signal
    process._popen.send_signal = lambda number: (sent.append(number), send(number))
    for _ in range(2):
        process.end()
    process._popen.stdin.close()  # as if we died
    until(lambda: process.look().phase == Phase.ENDED, 60)
    assert process.look().code == 0
    assert sent == [signal.SIGTERM]
    assert "a second signal" not in (tmp_path / "log").read_text()
    process.kill()
