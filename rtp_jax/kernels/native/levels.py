"""Which instructions a processor has, as levels that the C++ kernels are compiled for.

A level names everything below it too.  Each is one set of compiler flags; the sources pick their
inner loops by the macros which those define, and `portable` compiles anywhere.
"""

from pathlib import Path
from typing import NamedTuple


class Level(NamedTuple):
    """A set of instructions: what the processor must report, what the compiler is told."""

    name: str
    needs: frozenset[str]  # flags of /proc/cpuinfo
    flags: tuple[str, ...]


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
_BF16 = (*_AVX512, "-mavx512vnni", "-mavx512bf16")
_NEEDS_AVX512 = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
_NEEDS_BF16 = _NEEDS_AVX512 | {"avx512_vnni", "avx512_bf16"}
LEVELS = (  # best first
    Level(
        "amx",
        _NEEDS_BF16 | {"amx_tile", "amx_bf16", "amx_int8"},
        (*_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
    Level("avx512_bf16", _NEEDS_BF16, _BF16),
    Level("avx512", _NEEDS_AVX512, _AVX512),
    Level("avx2", frozenset({"avx2", "fma", "f16c"}), _AVX2),
    Level("portable", frozenset(), ()),
)
NAMES = tuple(level.name for level in LEVELS)


def levels_of_this_cpu() -> list[Level]:
    """List the levels that this processor runs, best first; where it cannot be asked, portable."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    words = {word for line in lines if line.startswith("flags") for word in line.split()}
    return [level for level in LEVELS if level.needs <= words]
