"""Reads the text of an optimized program: which kernels it calls, and which large arrays it makes.

Only what becomes work for the device counts: the inside of a fusion is one kernel, so its large
intermediate values exist nowhere; a bitcast, a tuple or a loop moves nothing; an update in place
(a scatter, a dynamic-update-slice) has a large result and writes little.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEMSIZE = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
ITEMSIZE |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
# What has a result but does not write it.
FREE = {"parameter", "get-tuple-element", "bitcast", "tuple", "while", "conditional", "call"}
FREE |= {"constant", "opt-barrier", "fusion-start", "async-start", "async-update", "copy-start"}
IN_PLACE = {"scatter", "dynamic-update-slice"}
SLICES = {"slice", "dynamic-slice", "copy", "bitcast"}
USES = {
    "dot",
    "gather",
    "custom-call",
}  # what weights are for: any other that reads them moves them

HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(([^)]*)\)(.*)")
START = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = \(.*\) (?:fusion|async|copy)-start\(([^)]*)\)(.*)"
)
OPERAND = re.compile(r"%([\w.\-]+)")
CALLS = re.compile(r"calls=%?([\w.\-]+)")
TARGET = re.compile(r'custom_call_target="([^"]+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a program that has one array as its result."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    operation: str
    operands: str
    rest: str  # attributes
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the result; 0 for a dtype that has none."""
        size = ITEMSIZE.get(self.dtype, 0)
        for length in self.shape:
            size *= length
        return size


class Program:
    """The computations of an optimized program."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self._calls_of: dict[str, str] = {}  # fusion-start -> its computation
        self._started: dict[str, str] = {}  # fusion-start -> its operands
        self._fused: set[str] = set()
        self._entry = ""
        self._custom_calls: list[str] = []
        inside = ""
        for line in text.splitlines():
            if " custom-call(" in line:  # its result may be several arrays
                self._custom_calls.append(line)
            if not line.startswith(" "):
                header = HEADER.match(line)
                inside = header.group(1) if header else inside
                self._entry = inside if line.startswith("ENTRY") else self._entry
            elif start := START.match(line):
                name, self._started[name], rest = start.groups()
                self._call(name, rest)
            elif found := LINE.match(line):
                self._take(inside, found)

    def _take(self, inside: str, found: re.Match) -> None:
        root, name, dtype, lengths, operation, operands, rest = found.groups()
        shape = tuple(int(length) for length in lengths.split(",") if length)
        instruction = Instruction(name, dtype, shape, operation, operands, rest, bool(root))
        self.computations.setdefault(inside, []).append(instruction)
        if operation == "fusion":
            self._call(name, rest)

    def _call(self, name: str, rest: str) -> None:
        if calls := CALLS.search(rest):
            self._calls_of[name] = calls.group(1)
            self._fused.add(calls.group(1))

    def kernels(self) -> list[Instruction]:
        """List what becomes work for the device: every instruction outside of fusions."""
        return [
            instruction
            for computation, instructions in self.computations.items()
            if computation not in self._fused
            for instruction in instructions
            if instruction.operation not in FREE
        ]

    def what_it_does(self, instruction: Instruction) -> str:
        """Name the operation that writes the result: a fusion's is that of its root."""
        name = instruction.name
        if instruction.operation in ("fusion-done", "async-done"):
            name = instruction.operands.split("%")[-1].strip()
        calls = self._calls_of.get(name)
        seen = set()
        while calls and calls not in seen:  # a wrapped fusion calls a fusion
            seen.add(calls)
            root = next((i for i in self.computations.get(calls, ()) if i.is_root), None)
            if root is None:
                return instruction.operation
            calls = self._calls_of.get(root.name) if root.operation == "fusion" else None
            if calls is None:
                return root.operation
        return instruction.operation

    def writes(self, num_bytes: int) -> Iterator[tuple[Instruction, str]]:
        """List the instructions that write at least `num_bytes`, and the operation that does."""
        for instruction in self.kernels():
            if instruction.num_bytes >= num_bytes:
                operation = self.what_it_does(instruction)
                aliased = "output_to_operand_aliasing" in instruction.rest
                if operation not in IN_PLACE and not aliased:
                    yield instruction, operation

    def copied_weights(self, num_weights: int, num_bytes: int) -> int:
        """Count the bytes that are written to have weights a second time.

        Weights are the first parameters of the program.  Of stacks, loops may copy one layer out;
        what reads a matrix directly must be a product or a lookup.
        """
        weights = [
            one
            for one in self.computations.get(self._entry, ())
            if one.operation == "parameter" and int(one.operands) < num_weights
        ]
        layers = {one.shape[1:] for one in weights if len(one.shape) == 3}
        readers = self._readers({one.name for one in weights if _is_matrix(one.shape)})
        return sum(
            one.num_bytes
            for one, operation in self.writes(num_bytes)
            if (operation in SLICES and (one.shape in layers or one.shape[1:] in layers))
            or (one.name in readers and not self._operations(one) & USES)
        )

    def _readers(self, sources: set[str]) -> set[str]:
        """Name what the program itself, outside of loops, does with some of its parameters."""
        found, same = set(), set(sources)
        for one in self.computations.get(self._entry, ()):
            operands = set(OPERAND.findall(one.operands))
            for name in operands & self._started.keys():
                operands |= set(OPERAND.findall(self._started[name]))
            if operands & same:
                (same if one.operation == "bitcast" else found).add(one.name)
        return found

    def _operations(self, instruction: Instruction) -> set[str]:
        """List all that happens in an instruction: in a fusion, in those that it calls."""
        names = [instruction.name, *OPERAND.findall(instruction.operands)]
        found, left = {instruction.operation}, [self._calls_of.get(name) for name in names]
        while left:
            for one in self.computations.get(left.pop() or "", ()):
                found.add(one.operation)
                left.append(self._calls_of.get(one.name))
        return found

    def custom_calls(self) -> collections.Counter[str]:
        """Count the calls of each target; for kernels of Pallas `mosaic_gpu:name`."""
        return collections.Counter(map(_called, self._custom_calls))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether it is one, or a stack of them; not scales of rows: results are scaled by those."""
    return len(shape) > 1 and min(shape[-2:]) > 1


def _called(line: str) -> str:
    target = TARGET.search(line)
    name = target.group(1) if target else "unknown"
    if name != "mosaic_gpu_v2":
        return name
    scope = OP_NAME.search(line)
    parts = scope.group(1).split("/") if scope else [""]
    return f"mosaic_gpu:{parts[-2] if len(parts) > 1 else parts[0]}"
