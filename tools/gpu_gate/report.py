"""What is known of a compiled program, what is expected of it, and whether the two agree."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

SHARED_MEMORY = 227 * 1024  # bytes of one block on Hopper


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of our own kernels in machine code, as ptxas reports it."""

    name: str
    registers: int  # of a thread
    spill_bytes: int  # stored and loaded again, by a thread
    stack_bytes: int
    wgmma: int  # instructions in the program text, not executions
    tma: int


@dataclass(frozen=True, slots=True)
class Report:
    """A compiled program."""

    name: str
    lower_s: float = 0.0
    compile_s: float = 0.0
    error: str | None = None  # why there is no program
    custom_calls: dict[str, int] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)
    shared_bytes: int = 0  # of a block of the kernel that takes most
    donated_bytes: int = 0
    alias_bytes: int = 0
    temp_bytes: int = 0
    kv_bytes: int = 0
    kv_copies: list[str] = field(default_factory=list)  # instructions that write as much
    copied_weights_bytes: int = 0  # written to have weights a second time

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "Report":
        """Read what `asdict` wrote."""
        return cls(**{**values, "kernels": [Kernel(**kernel) for kernel in values["kernels"]]})

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """What a program must be like."""

    kernels: tuple[str, ...] = ()  # our kernels that it must call; twice where it must call twice
    kv_bytes: int = 0  # of the donated pages; 0: there are none
    max_temp_bytes: int
    has_weights: bool = False  # as the first argument; no step may copy them


def complaints(report: Report, expected: Expectation) -> list[str]:
    """Say in words everything that is wrong with a program."""
    if report.error:
        return [f"it does not compile: {report.error}"]
    called = {
        name.partition(":")[2]: count for name, count in report.custom_calls.items() if ":" in name
    }
    seen = {kernel.name for kernel in report.kernels}
    wrong = [
        f"kernel {name} is called {called.get(name, 0)} times and not {count}"
        for name, count in Counter(expected.kernels).items()
        if called.get(name, 0) < count
    ]
    wrong += [f"kernel {name} left no report of ptxas" for name in sorted(called.keys() - seen)]
    for kernel in report.kernels:
        if kernel.spill_bytes:
            wrong.append(f"kernel {kernel.name} spills {kernel.spill_bytes} bytes")
    if report.shared_bytes > SHARED_MEMORY:
        wrong.append(f"a kernel takes {report.shared_bytes} bytes of shared memory")
    if report.alias_bytes < report.donated_bytes:
        wrong.append(f"{report.alias_bytes} of {report.donated_bytes} donated bytes are aliased")
    if report.donated_bytes < expected.kv_bytes:
        wrong.append(f"{report.donated_bytes} bytes are donated, less than the pages")
    wrong += [f"the pages are copied: {copy}" for copy in report.kv_copies]
    if report.temp_bytes > expected.max_temp_bytes:
        wrong.append(f"{report.temp_bytes} temporary bytes, more than {expected.max_temp_bytes}")
    if report.copied_weights_bytes:
        wrong.append(f"{report.copied_weights_bytes} bytes of weights are copied")
    return wrong
