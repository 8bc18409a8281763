"""How much memory this process may use: what /proc says, lowered by the limits of its cgroups.

Read next: `memory_plan.py`.
"""

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HUGE_PAGE = 2 << 20
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14  # of Linux
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc
UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of the host, as far as this process may use them."""

    limit: int  # all of it, in use or not
    available: int  # what can be taken now without swapping


@dataclass(frozen=True, slots=True)
class Files:
    """What one version of cgroups calls its files."""

    limit: str
    usage: str
    reclaimable: str  # key of memory.stat: page cache that gives way


V1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = Files("memory.max", "memory.current", "inactive_file")


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Read both numbers; `root` is where `proc` and `sys` are mounted."""
    machine = _numbers(root / "proc/meminfo")
    limit = machine["MemTotal"] * 1024
    available = machine.get("MemAvailable", machine["MemTotal"]) * 1024
    for folder, files in _cgroups(root):
        bound = _number(folder / files.limit)
        if bound is None or bound >= UNLIMITED:
            continue
        used = _number(folder / files.usage) or 0
        reclaimable = _numbers(folder / "memory.stat").get(files.reclaimable, 0)
        limit = min(limit, bound)
        available = min(available, max(bound - used + reclaimable, 0))
    return HostMemory(limit, min(available, limit))


def _cgroups(root: Path) -> Iterator[tuple[Path, Files]]:
    """List the folders of this process's memory cgroups, up to the root of their mounts.

    In a container the path of `/proc/self/cgroup` may not exist, and the root is its own.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", V2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", V1
        else:
            continue
        folder = mount / path.strip("/")
        for parent in (folder, *folder.parents):
            yield parent, files
            if parent == mount:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of `name: number unit`, with or without the colon and the unit."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def return_free_memory() -> None:
    """Give what was freed back to the system, in some 10 ms.

    After compiling, the C heap holds half a gigabyte, and after loading programs 40 MB.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library, which does it by itself or cannot
        return


def keep_free_memory() -> None:
    """Have the C heap keep what is freed, up to 256 MB of it, for a process that is a server.

    By default glibc takes memory of more than some 128 KB from the system and gives it back each
    time; the pages of KV that come and go are such memory, and each first touch of 4 KB costs.
    `return_free_memory` still gives everything back.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(ctypes.c_int(M_MMAP_THRESHOLD), ctypes.c_int(32 << 20))  # glibc's largest
        libc.mallopt(ctypes.c_int(M_TRIM_THRESHOLD), ctypes.c_int(256 << 20))
    except (OSError, AttributeError):
        return


def zero_untouched(address: int, num_bytes: int) -> None:
    """Zero host memory without touching it, and ask for 2 MB pages, where the system can.

    KV is read a few KB here and there: with 4 KB pages each of these is looked up anew.
    """
    start = -(-address // HUGE_PAGE) * HUGE_PAGE
    length = (address + num_bytes) // HUGE_PAGE * HUGE_PAGE - start
    if sys.platform != "linux" or length <= 0 or _advise(start, length, MADV_DONTNEED):
        ctypes.memset(address, 0, num_bytes)
        return
    _advise(start, length, MADV_HUGEPAGE)  # may be refused
    ctypes.memset(address, 0, start - address)
    ctypes.memset(start + length, 0, address + num_bytes - start - length)


def _advise(address: int, num_bytes: int, advice: int) -> int:
    """Call madvise, which returns 0 if it was taken; the GIL is free meanwhile."""
    return ctypes.CDLL(None).madvise(
        ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), ctypes.c_int(advice)
    )
