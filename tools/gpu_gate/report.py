"""What is known of a compiled program, what is expected of it, and whether the two agree."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SHARED_MEMORY = 227 * 1024  # bytes of one block on Hopper
PTXAS = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores,"
    r" (\d+) bytes spill loads\s+.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)
RESOURCES = re.compile(r"smem_scratch_bytes=(\d+)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of our own kernels in machine code, as ptxas reports it."""

    name: str
    registers: int  # of a thread
    spill_bytes: int  # stored and loaded again, by a thread
    stack_bytes: int
    shared_bytes: int  # of a block
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
    donated_bytes: int = 0
    alias_bytes: int = 0
    temp_bytes: int = 0
    kv_bytes: int = 0
    kv_copies: list[str] = field(default_factory=list)  # instructions that write as much
    weight_slices_bytes: int = 0  # written by copying layers out of stacked weights, in one layer

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
    max_weight_slices_bytes: int | None = None  # None: only reported


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
        if kernel.shared_bytes > SHARED_MEMORY:
            wrong.append(f"kernel {kernel.name} takes {kernel.shared_bytes} bytes of shared memory")
    if report.alias_bytes < report.donated_bytes:
        wrong.append(f"{report.alias_bytes} of {report.donated_bytes} donated bytes are aliased")
    if report.donated_bytes < expected.kv_bytes:
        wrong.append(f"{report.donated_bytes} bytes are donated, less than the pages")
    wrong += [f"the pages are copied: {copy}" for copy in report.kv_copies]
    if report.temp_bytes > expected.max_temp_bytes:
        wrong.append(f"{report.temp_bytes} temporary bytes, more than {expected.max_temp_bytes}")
    slices = expected.max_weight_slices_bytes
    if slices is not None and report.weight_slices_bytes > slices:
        wrong.append(f"{report.weight_slices_bytes} bytes of weights are copied in each layer")
    return wrong


def read_dumps(folder: Path) -> list[Kernel]:
    """Read and remove what Mosaic left of the kernels that it compiled."""
    kernels = []
    for path in sorted(folder.glob("*.ptxas")):
        resources = path.with_name(f"{path.stem}.resources.txt")
        scratch = RESOURCES.search(resources.read_text()) if resources.exists() else None
        code = path.with_suffix(".ptx")
        text = code.read_text() if code.exists() else ""
        for found in PTXAS.finditer(path.read_text().replace("\nptxas info    :", " ")):
            name, stack, stores, loads, registers, static = found.groups()
            kernels.append(
                Kernel(
                    name=name.removesuffix("_mosaic_gpu_kernel"),
                    registers=int(registers),
                    spill_bytes=int(stores) + int(loads),
                    stack_bytes=int(stack),
                    shared_bytes=int(static or 0) + (int(scratch.group(1)) if scratch else 0),
                    wgmma=text.count("wgmma.mma_async"),
                    tma=text.count("cp.async.bulk.tensor"),
                )
            )
    for path in folder.iterdir():
        path.unlink()
    return kernels
