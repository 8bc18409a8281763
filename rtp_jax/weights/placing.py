"""How do the bytes of a part become numbers of parameters, wherever these are held?

    bytes -> numbers -> other layout, dtype -> encoded -> cut for each device -> its buffer
                                                       -> cut for each process -> a message to it

Bytes that are numbers of one parameter already, in one layout, are read straight into its buffers;
everything else comes by here, in several threads.

Read next: `loader.py`, which calls this as parts arrive.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.convert import aligned, overflowed, write
from rtp_jax.weights.encoder import Encoder, WrongPart
from rtp_jax.weights.gathering import Gathering, Outgoing, Stored
from rtp_jax.weights.held import Cut, Held
from rtp_jax.weights.parts import Part
from rtp_jax.weights.plan import Parameters, Placement, Plan
from rtp_jax.weights.safetensors import Tensor
from rtp_jax.weights.shards import Box, byte_ranges, overlap, shape_of, whole, within
from rtp_jax.weights.spread import Spread
from rtp_jax.weights.table import as_is

BYTE = np.dtype(np.uint8)


class Region(NamedTuple):
    """What a part fills of a parameter as it is held."""

    path: str
    box: Box
    depth: int  # leading axes that only say which row of a stack it is


class Message(NamedTuple):
    """What a part fills in the buffers of a process."""

    path: str
    box: Box
    size: int  # bytes


class Placed(NamedTuple):
    """What has become of a part."""

    counts: list[tuple[str, int]]  # numbers written to buffers of this process
    outgoing: Outgoing


@dataclass(frozen=True, slots=True)
class Placing:
    """Who needs what of each part."""

    plan: Plan
    parameters: Parameters
    encoders: Mapping[str, Encoder]
    held: Held
    spread: Spread
    gathering: Gathering

    def placements(self, part: Part) -> list[Placement]:
        """List the parameters that a part goes to; none if its tensor is ignored."""
        return self.plan.placements_of[part.tensor.name]

    def rows_together(self, tensor: Tensor) -> int | None:
        """Say how many rows of a tensor are placed together: None if all of them are."""
        together = 1
        for placement in self.plan.placements_of[tensor.name]:
            encoder = self.encoders.get(placement.parameter)
            alone = 1 if encoder is None else encoder.block_rows
            if encoder is not None and len(encoder.parts) > 1:
                return None
            if placement.transform is not as_is or alone is None:
                return None
            together = math.lcm(together, alone)
        return together

    def regions(self, part: Part, placement: Placement) -> list[Region]:
        """Say what a part fills."""
        path = placement.parameter
        num_rows = self.parameters[path].shape[len(placement.row) :][:1]
        encoder = self.encoders.get(path)
        held = {path: self.parameters[path]} if encoder is None else encoder.held
        block_rows = 1 if encoder is None else encoder.block_rows or 1
        row = tuple((number, number + 1) for number in placement.row)
        found = []
        for name, described in held.items():
            shape = described.shape[len(row) :]
            box = whole(shape)
            if part.rows is not None:
                unit = 1 if shape[:1] == num_rows else block_rows
                start, end = part.rows
                box = ((start // unit, -(-end // unit)), *box[1:])
            found.append(Region(name, (*row, *box), len(row)))
        return found

    def prepare(self, part: Part) -> None:
        """Have the buffers ready that a part fills."""
        for placement in self.placements(part):
            for region in self.regions(part, placement):
                self.held.prepare(region.path)

    def straight(self, part: Part) -> list[np.ndarray] | None:
        """Give the memory (uint8) of the buffers, if a part's bytes can be read right there."""
        if len(placements := self.placements(part)) != 1 or self.spread.num_processes > 1:
            return None
        placement, dtype = placements[0], part.tensor.dtype
        path = placement.parameter
        same = np.dtype(self.parameters[path].dtype) == dtype
        if path in self.encoders or placement.transform is not as_is or not same:
            return None
        (region,) = self.regions(part, placement)
        cuts, end, views = self.held.cuts(path, region.box), 0, []
        for cut in sorted(cuts, key=lambda cut: [s.start for s in cut.source]):
            box = tuple((s.start, s.stop) for s in cut.source)
            ranges = byte_ranges(box, shape_of(region.box), dtype.itemsize)
            if len(ranges) != 1 or ranges[0][0] != end or not cut.target.flags.c_contiguous:
                return None
            end = ranges[0][1]
            views.append(cut.target.reshape(-1).view(np.uint8))
        return views if end == part.size else None

    def counts(self, part: Part) -> list[tuple[str, int]]:
        """Count the numbers that a part fills in the buffers of this process."""
        return [
            (region.path, sum(cut.target.size for cut in self.held.cuts(region.path, region.box)))
            for placement in self.placements(part)
            for region in self.regions(part, placement)
        ]

    def messages(self, part: Part, process: int) -> Iterator[Message]:
        """List what a process needs of a part that another one reads, in the order of sending.

        What it needs of a matrix that is stored as several tensors comes with the last of these.
        """
        if not self.gathering.sends(part):
            return
        for placement in self.placements(part):
            for region in self.regions(part, placement):
                described = self.held.described[region.path]
                several = self.spread.boxes(region.path, described.shape, process)
                for box in dict.fromkeys(several):
                    if shared := overlap(region.box, box):
                        size = math.prod(shape_of(shared)) * np.dtype(described.dtype).itemsize
                        yield Message(region.path, shared, size)

    def place(self, part: Part, memory: np.ndarray) -> Placed:
        """Write a part into the buffers of this process, and cut out what others need.

        Several threads may do so for different parts.
        """
        source = np.ndarray(part.shape, part.tensor.dtype, memory)
        others = [p for p in range(self.spread.num_processes) if p != self.spread.process]
        placed = Placed([], {process: [] for process in others})
        is_gathered = part.tensor.name in self.gathering.matrix_of
        for placement in self.placements(part):
            numbers = placement.transform.apply(source)
            regions, arrays = self.regions(part, placement), [numbers]
            if encoder := self.encoders.get(placement.parameter):
                stored = self._gathered(encoder, placement, numbers, part)
                if not stored:
                    continue  # the rest of the matrix has not come
                arrays = self._encoded(encoder, stored, regions)
            for region, array in zip(regions, arrays, strict=True):
                cuts = self.held.cuts(region.path, region.box)
                placed.counts.append((region.path, sum(cut.target.size for cut in cuts)))
                if array is None:  # it is in its buffer
                    continue
                array = array.reshape(shape_of(region.box))
                for target, cut in cuts:
                    _write(target, array[(*cut, ...)], part)
                for process in others:
                    placed.outgoing[process] += self._cut_out(region, array, part, process)
            if is_gathered:
                self.gathering.keep(part, placed.outgoing)
        return placed

    def outgoing(self, part: Part, placed: Placed) -> Outgoing:
        """Give what is sent after a part, when it and all parts before it have been placed."""
        if part.tensor.name not in self.gathering.matrix_of:
            return placed.outgoing
        return self.gathering.take(part) if self.gathering.sends(part) else {}

    def _gathered(
        self, encoder: Encoder, placement: Placement, numbers: np.ndarray, part: Part
    ) -> dict[str, Stored]:
        """Give all that is stored of a matrix, or of rows of it, once it is there."""
        dtype = np.dtype(self.parameters[placement.parameter].dtype)
        several = part.tensor.name in self.gathering.matrix_of
        stored = Stored(_converted(numbers, dtype, part, copy=several), part)
        if several:
            return self.gathering.add(encoder, placement, stored)
        return {encoder.parts[placement.parameter]: stored}

    def _encoded(
        self, encoder: Encoder, stored: Mapping[str, Stored], regions: list[Region]
    ) -> list[np.ndarray | None]:
        """Encode, straight into the buffers if each region is one run of one buffer.

        Returns:
          For each region its array, or None if it is in its buffer already.
        """
        into, results = {}, []
        for region in regions:
            cuts, shape = self.held.cuts(region.path, region.box), shape_of(region.box)
            if self.spread.num_processes == 1 and len(cuts) == 1 and _takes_all(cuts[0], region):
                into[region.path] = cuts[0].target.reshape(shape[region.depth :])
                results.append(None)
            else:
                dtype = np.dtype(self.held.described[region.path].dtype)
                into[region.path] = aligned(shape[region.depth :], dtype)
                results.append(into[region.path])
        try:
            encoder.encode({name: one.numbers for name, one in stored.items()}, into)
        except WrongPart as wrong:
            part = stored[wrong.part].part
            raise CheckpointError(
                f"RTPJ-3103 QUANTIZED_TENSOR_WRONG: {part.header.path}, tensor {part.tensor.name}:"
                f" {wrong.reason}. Use the config.json of this checkpoint, or quantize anew."
            ) from wrong
        return results

    def _cut_out(
        self, region: Region, array: np.ndarray, part: Part, process: int
    ) -> Iterator[np.ndarray]:
        """Copy what a process needs of a region, as bytes in the order of `messages`."""
        described = self.held.described[region.path]
        for box in dict.fromkeys(self.spread.boxes(region.path, described.shape, process)):
            if shared := overlap(region.box, box):
                copy = np.empty(shape_of(shared), np.dtype(described.dtype))
                _write(copy, array[(*within(shared, region.box), ...)], part)
                yield copy.reshape(-1).view(np.uint8)


def _takes_all(cut: Cut, region: Region) -> bool:
    return cut.target.shape == shape_of(region.box) and cut.target.flags.c_contiguous


def _converted(numbers: np.ndarray, dtype: np.dtype, part: Part, *, copy: bool) -> np.ndarray:
    """Give numbers end to end and in another dtype, as encoders take them, or a copy that stays."""
    if numbers.dtype == dtype and numbers.flags.c_contiguous and not copy:
        return numbers
    result = aligned(numbers.shape, dtype)
    _write(result, numbers, part)
    return result


def _write(target: np.ndarray, source: np.ndarray, part: Part) -> None:
    write(target, source)
    if overflowed(target, source):
        raise CheckpointError(
            f"RTPJ-3102 NUMBER_TOO_LARGE: {part.header.path}, tensor {part.tensor.name}: numbers of"
            f" {source.dtype} are infinite in {target.dtype}. Run the model in bfloat16 or float32."
        )
