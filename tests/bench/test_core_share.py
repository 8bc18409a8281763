"""A process with a share of a core gets no more than that, and who cannot have one is told why."""

import os
import subprocess
import sys

import pytest

from bench import core_share
from bench.core_share import CoreShare

BUSY = """
import sys, time
sys.stdin.readline()
began_s, until_s = time.process_time(), time.monotonic() + 1
while time.monotonic() < until_s:
    pass
print(time.process_time() - began_s)
"""


@pytest.mark.skipif(
    not os.access(core_share.CONTROLLER / "cpu.cfs_quota_us", os.W_OK),
    reason="no control groups of version 1 that may be written",
)
def test_a_process_gets_its_share_and_no_more():
    before = os.sched_getaffinity(0)
    number = len(before) + 1  # of a process; cores are given in turns
    with CoreShare(0.25, number) as share:
        with share.starting():
            busy = subprocess.Popen(
                [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        try:
            assert os.sched_getaffinity(0) == before
            assert os.sched_getaffinity(busy.pid) == {sorted(before)[number % len(before)]}
            said, _ = busy.communicate(b"go\n", timeout=60)
        finally:
            busy.kill()
            busy.wait()
    assert 0 < float(said) < 0.5


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.09, 1.1])
def test_a_share_that_nobody_can_have_is_refused(share):
    with pytest.raises(SystemExit, match=r"0\.1 to 1 of a core"):
        CoreShare(share, 0)


def test_a_machine_without_control_groups_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(core_share, "CONTROLLER", tmp_path / "absent")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    with (
        pytest.raises(SystemExit, match=r"--core-share: .*absent.*leave it out"),
        CoreShare(0.5, 0),
    ):
        pass
