"""Two processes and jax's own transfer server: what it does, and what must be done around it."""

import contextlib
import dataclasses
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rtp_jax.config import EngineConfig
from rtp_jax.engine.direct import check_transport
from rtp_jax.errors import FailedPrecondition
from rtp_jax.runner.direct_server import JaxEnd
from rtp_jax.transfer import hosts
from rtp_jax.transfer.direct import DirectFailed
from rtp_jax.transfer.direct_take import Giver, Taking
from tests.transfer.served import until

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
NEVER = threading.Event()


class GiverProcess:
    """Another process that gives arrays."""

    def __init__(self):
        command, pipe = [sys.executable, "-m", "tests.runner.direct_giver"], subprocess.PIPE
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self.giver = Giver("127.0.0.1:1", "life", "127.0.0.2", int(self.popen.stdout.readline()))

    def ask(self, *words: object) -> str:
        """Send a line and return the answer."""
        self.popen.stdin.write(" ".join(map(str, words)) + "\n")
        self.popen.stdin.flush()
        return self.popen.stdout.readline().strip()

    def kill(self) -> None:
        """End it as a crash does."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """End it, and close its pipes."""
        self.kill()
        self.popen.stdin.close()
        self.popen.stdout.close()


@pytest.fixture(scope="module")
def process():
    """Start a giver that all tests share that leave it as it was."""
    with contextlib.closing(GiverProcess()) as made:
        yield made


@pytest.fixture
def victim():
    """Start a giver that does not live long."""
    with contextlib.closing(GiverProcess()) as made:
        yield made


@pytest.fixture(scope="module")
def end():
    made = JaxEnd("127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def taking(end):
    made = Taking(end, max_stuck=2)
    yield made
    made.close()
    assert made.counts.stuck == 0  # every pull could be ended


def take(taking: Taking, giver: Giver, array_id: int, size: int, within_s: float = 20.0) -> bytes:
    came = taking.take(giver, array_id, size, time.monotonic() + within_s, NEVER)
    return bytes(came)


def test_bytes_come_over_whatever_their_number(taking, process):
    for array_id, size in enumerate((1, 1000, 32 * MIB, 12345), start=7):
        process.ask("give", array_id, size, 30)
        assert take(taking, process.giver, array_id, size) == bytes([array_id]) * size


def test_what_nobody_fetches_is_dropped_by_a_sweep(taking, process):
    before = int(process.ask("memory"))
    for array_id in range(10, 14):
        process.ask("give", array_id, 32 * MIB, 60)
    process.ask("sweep")
    assert int(process.ask("memory")) - before > 100
    for array_id in range(10, 14):
        assert take(taking, process.giver, array_id, 32 * MIB) == bytes([array_id]) * (32 * MIB)
    for array_id in range(20, 24):
        process.ask("give", array_id, 32 * MIB, -1.0)
    process.ask("sweep")
    assert int(process.ask("memory")) - before < 70
    with pytest.raises(DirectFailed):
        take(taking, process.giver, 20, 32 * MIB, within_s=0.2)


def test_what_does_not_exist_is_given_up_in_time(taking, process):
    began = time.monotonic()
    with pytest.raises(DirectFailed, match="did not come in time"):
        take(taking, process.giver, 99, 1000, within_s=0.3)
    assert time.monotonic() - began < 1


def test_another_size_than_was_given_brings_nothing(taking, process):
    for array_id, size in ((1, 999), (2, 1001)):
        process.ask("give", array_id, 1000, 30)
        with pytest.raises(DirectFailed):
            take(taking, process.giver, array_id, size, within_s=0.5)


def test_a_giver_that_is_killed(taking, victim):
    """In the middle of a pull, and before another one."""
    victim.ask("give", 1, 1000, 30)
    assert len(take(taking, victim.giver, 1, 1000)) == 1000
    size = 256 * MIB
    victim.ask("give", 5, size, 30)
    timer = threading.Timer(0.02, victim.popen.kill)
    timer.start()
    began = time.monotonic()
    with contextlib.suppress(DirectFailed):  # where it was too late
        assert take(taking, victim.giver, 5, size) == bytes([5]) * size
    assert time.monotonic() - began < 10  # and not 20: a connection that ends is noticed
    timer.join()
    victim.kill()
    with pytest.raises(DirectFailed):
        take(taking, victim.giver, 2, 1000, within_s=0.3)


def test_a_giver_that_stops_is_given_up_and_gives_again_when_it_wakes(taking, process):
    process.ask("give", 1, 1000, 30)
    take(taking, process.giver, 1, 1000)
    process.popen.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(DirectFailed, match="did not come in time"):
        take(taking, process.giver, 2, 1000, within_s=0.3)
    assert time.monotonic() - began < 1
    process.popen.send_signal(signal.SIGCONT)
    process.ask("give", 3, 1000, 30)
    assert take(taking, process.giver, 3, 1000) == bytes([3]) * 1000


def test_what_was_given_before_a_renewal_and_after_it_is_there(taking, process):
    first = dataclasses.replace(process.giver, port=int(process.ask("give", 1, 1000, 30)))
    process.ask("renew")
    second = dataclasses.replace(process.giver, port=int(process.ask("give", 2, 1000, 30)))
    assert first.port != second.port
    assert take(taking, second, 2, 1000) == bytes([2]) * 1000
    assert take(taking, first, 1, 1000) == bytes([1]) * 1000
    process.giver = second


def end_at_random_moments(taking: Taking, process: GiverProcess, count: int) -> None:
    """Give up pulls of all sizes: what came is right, and the next link works."""
    rng, threads = random.Random(0), threading.active_count()
    for number in range(count):
        size, array_id = rng.choice((1000, MIB, 16 * MIB)), 10_000 + number
        process.ask("give", array_id, size, 5)
        with contextlib.suppress(DirectFailed):
            within_s = rng.random() * rng.choice((0.001, 0.01))
            came = take(taking, process.giver, array_id, size, within_s=within_s)
            assert came == bytes([array_id % 251]) * size
    process.ask("renew")  # it may be jammed
    process.giver = dataclasses.replace(process.giver, port=int(process.ask("give", 7, 1000, 30)))
    assert take(taking, process.giver, 7, 1000) == bytes([7]) * 1000
    assert until(lambda: threading.active_count() <= threads + 1)  # the watchdog
    assert taking.counts.stuck == 0


def test_pulls_that_are_ended_at_any_moment_end(taking, process):
    end_at_random_moments(taking, process, 20)
    assert taking.counts.failed > 5


@pytest.mark.full
def test_a_thousand_pulls_that_are_ended_at_any_moment_end(taking, process):
    end_at_random_moments(taking, process, 1000)


def test_many_arrays_leave_neither_threads_nor_files(taking, process):
    def held() -> tuple[int, int]:
        pulls = {"rtp-direct-pull", "rtp-direct-end"}
        assert until(lambda: not pulls & {thread.name for thread in threading.enumerate()})
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    take_one = [process.ask("give", 500, 10, 30), take(taking, process.giver, 500, 10)]
    assert take_one[1] == bytes([500 % 251]) * 10
    before = held()
    for array_id in range(1000, 1200):
        process.ask("give", array_id, 2000, 30)
        take(taking, process.giver, array_id, 2000)
    assert held() == before


def test_an_end_without_memory_holds_nothing_and_lives_on(end, monkeypatch):
    def full(*_, **__):
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr("rtp_jax.runner.direct_server.aligned", full)
        with pytest.raises(DirectFailed, match="3 bytes cannot be held: full"):
            end.give(1, [b"abc"], 30)
    with monkeypatch.context() as patch:
        patch.setattr("rtp_jax.runner.direct_server.jax.device_put", full)
        end.sweep()
        patch.setattr("rtp_jax.runner.direct_server.servers.start_transfer_server", full)
        end.renew()
    assert end.give(1, [b"abc"], -1.0) > 0
    end.sweep()


@pytest.mark.parametrize("host", ["localhost", "fe80::1", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_refused(host):
    with pytest.raises(FailedPrecondition, match=r"RTPJ-4314 KV_TRANSPORT_UNAVAILABLE") as refused:
        JaxEnd(host)
    assert refused.value.field == "kv_transport"
    assert f"kv_transport_host={host}" in str(refused.value)


def test_everywhere_is_the_address_on_the_way_to_others(monkeypatch):
    monkeypatch.setitem(hosts.ELSEWHERE, 4, "127.0.0.2")
    end = JaxEnd("0.0.0.0")
    assert end.host == "127.0.0.1"
    end.close()
    monkeypatch.setitem(hosts.ELSEWHERE, 4, "255.255.255.255")
    with pytest.raises(FailedPrecondition, match=r"RTPJ-4314.*has no way to others.*name one of"):
        JaxEnd("0.0.0.0")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "exchanges no pages without a role"),
        ({"role": "both", "enable_prefix_caching": False}, "exchanges no pages"),
        ({"role": "both", "transfer_tls_ca": "ca.pem"}, "does not encrypt"),
    ],
)
def test_a_config_that_it_does_not_go_with_is_refused(options, reason):
    config = EngineConfig.from_options(kv_transport="jax", **options)
    with pytest.raises(FailedPrecondition, match=f"RTPJ-4314 KV_TRANSPORT_UNAVAILABLE: .*{reason}"):
        check_transport(config)
    check_transport(EngineConfig.from_options(**options))


def test_a_jax_without_it_is_refused(monkeypatch):
    def none(*_, **__):
        raise AttributeError("no transfer server")

    monkeypatch.setattr("rtp_jax.runner.direct_server.servers", type("Old", (), {"start": none}))
    with pytest.raises(FailedPrecondition, match="RTPJ-4314"):
        JaxEnd("127.0.0.1")
