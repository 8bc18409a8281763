"""The memory limit is the smallest of the machine's and every cgroup's."""

import subprocess
import sys
from pathlib import Path

import pytest

from rtp_jax.runner.host_memory import HostMemory, host_memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\nHugePages: 0\n"
TOTAL, AVAILABLE = 16_384_000_000, 12_288_000_000


@pytest.fixture
def root(tmp_path: Path):
    """Build a root folder from a cgroup line and the files of cgroups."""

    def build(cgroup: str, **files: str) -> Path:
        contents = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup}
        contents |= files
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_without_cgroups_the_machine_counts(root):
    assert host_memory(root("")) == HostMemory(TOTAL, AVAILABLE)


def test_version_2_limits_at_any_level(root):
    files = {
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": "4000000000\n",
        "sys/fs/cgroup/a/memory.current": "3000000000\n",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 500000000\n",
    }
    assert host_memory(root("0::/a/b\n", **files)) == HostMemory(4_000_000_000, 1_500_000_000)


def test_version_1_limits_and_its_way_to_say_none(root):
    folder = "sys/fs/cgroup/memory"
    files = {
        f"{folder}/job/memory.limit_in_bytes": "2000000000\n",
        f"{folder}/job/memory.usage_in_bytes": "100\n",
        f"{folder}/memory.limit_in_bytes": "9223372036854771712\n",
    }
    lines = "5:cpu:/\n4:memory:/job\n0::/\n"
    assert host_memory(root(lines, **files)) == HostMemory(2_000_000_000, 1_999_999_900)


def test_a_container_sees_only_the_root_of_its_cgroup(root):
    files = {"sys/fs/cgroup/memory.max": "1000000000", "sys/fs/cgroup/memory.current": "5"}
    found = host_memory(root("0::/not/visible/here\n", **files))
    assert found == HostMemory(1_000_000_000, 999_999_995)


def test_a_limit_above_the_machine_changes_nothing(root):
    files = {"sys/fs/cgroup/memory.max": str(10**15)}
    assert host_memory(root("0::/\n", **files)).limit == TOTAL


def test_this_machine_has_memory():
    found = host_memory()
    assert 0 < found.available <= found.limit


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_memory_that_is_kept_is_not_touched_anew():
    program = """
import resource, sys
from rtp_jax.runner.host_memory import keep_free_memory
if sys.argv[1] == "keep":
    keep_free_memory()
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytes(4 << 20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = [sys.executable, "-c", program]
    faults = {
        name: int(subprocess.run([*run, name], capture_output=True, check=True).stdout)
        for name in ("keep", "default")
    }
    assert faults["keep"] < faults["default"] / 10, faults
