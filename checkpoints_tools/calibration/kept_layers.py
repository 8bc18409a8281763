"""Where is a layer kept between being quantized and being written?  In a file of its own.

The files of the output have their tensors in another order than layers are computed, so each layer
is first written to `.layer-N` in the partial folder: the bytes of its new tensors, one after the
other.  `.layers` is a journal of them, with which an interrupted run goes on.

Read next: `layers.py`.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from checkpoints_tools.calibration.grid import Encoded, Kind
from checkpoints_tools.compressed import pack, unpack
from checkpoints_tools.journal import Journal
from checkpoints_tools.stored import Place
from checkpoints_tools.writers import OutputTensor

JOURNAL = ".layers"
INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
BITS = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a layer, and where it begins in the layer's file."""

    name: str  # in the output
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        """How many bytes it has."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, path: Path) -> np.ndarray:
        """Read it whole."""
        pieces = [*Place(path, self.start, self.num_bytes).read()]
        return np.concatenate(pieces).view(self.dtype).reshape(self.shape)

    def output(self, path: Path) -> OutputTensor:
        """Describe the tensor of the output."""
        place = Place(path, self.start, self.num_bytes)
        return OutputTensor(self.name, self.dtype, self.shape, place.read)


@dataclass(frozen=True)
class LayerFile:
    """The file of one layer."""

    number: int
    modules: Mapping[str, tuple[str, tuple[int, int]]]  # path to name and [outer, inner]
    changed: Mapping[str, tuple[str, np.dtype, tuple[int, ...]]]  # path of other tensors likewise
    kind: Kind

    @property
    def name(self) -> str:
        """What it is called in the partial folder."""
        return f".layer-{self.number:05}"

    @property
    def slots(self) -> dict[str, Slot]:
        """What it holds, by path and part, in order."""
        start, found = 0, {}
        for key, name, dtype, shape in self._tensors():
            found[key] = Slot(name, dtype, shape, start)
            start += found[key].num_bytes
        return found

    def _tensors(self) -> Iterator[tuple[str, str, np.dtype, tuple[int, ...]]]:
        kind = self.kind
        for path, (name, (outer, inner)) in self.modules.items():
            groups = inner // kind.group
            yield f"{path}.packed", f"{name}.weight_packed", INT32, (outer, -(-inner * BITS // 32))
            yield f"{path}.scale", f"{name}.weight_scale", kind.dtype, (outer, groups)
            if not kind.symmetric:
                shape = (-(-outer * BITS // 32), groups)
                yield f"{path}.zeros", f"{name}.weight_zero_point", INT32, shape
        for path, (name, dtype, shape) in self.changed.items():
            yield path, name, dtype, shape

    @property
    def num_bytes(self) -> int:
        """How large it is."""
        return sum(slot.num_bytes for slot in self.slots.values())

    def outputs(self, folder: Path) -> dict[str, list[OutputTensor]]:
        """Describe what each tensor of the source becomes, by its name."""
        slots, path = self.slots, folder / self.name
        found = {name: [slots[key].output(path)] for key, (name, *_) in self.changed.items()}
        for module, (name, shape) in self.modules.items():
            parts = [f"{module}.{part}" for part in ("packed", "scale", "zeros")]
            made = [slots[part].output(path) for part in parts if part in slots]
            size = np.array(shape, np.int64).view(np.uint8)
            made.append(OutputTensor(f"{name}.weight_shape", INT64, (2,), _constant(size)))
            found[f"{name}.weight"] = made
        return found

    def write(
        self, folder: Path, encoded: Mapping[str, Encoded], numbers: Mapping[str, np.ndarray]
    ) -> str:
        """Write it, and return its sha256."""
        digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with FileIO(os.open(folder / self.name, flags, 0o644), "w", closefd=True) as file:
            for key, slot in self.slots.items():
                array = self._bytes(key, encoded, numbers).astype(slot.dtype, copy=False)
                assert array.shape == slot.shape, (key, array.shape, slot.shape)
                rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                digest.update(rest)
                while rest:
                    rest = rest[file.write(rest) :]
        return digest.hexdigest()

    def _bytes(
        self, key: str, encoded: Mapping[str, Encoded], numbers: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        if key in self.changed:
            return numbers[key]
        module, _, part = key.rpartition(".")
        matrix = encoded[module]
        if part == "packed":
            return pack(matrix.values, BITS)
        if part == "scale":
            return matrix.scales
        assert matrix.zeros is not None
        return pack(np.ascontiguousarray(matrix.zeros.T), BITS).T

    def read(self, folder: Path) -> tuple[dict[str, Encoded], dict[str, np.ndarray]]:
        """Read matrices, and the numbers of other tensors, as `write` got them."""
        slots, path = self.slots, folder / self.name
        encoded = {}
        for module, (_, (outer, inner)) in self.modules.items():
            zeros = None
            if not self.kind.symmetric:
                words = np.ascontiguousarray(slots[f"{module}.zeros"].read(path).T)
                zeros = np.ascontiguousarray(unpack(words, BITS, outer).T)
            values = unpack(slots[f"{module}.packed"].read(path), BITS, inner)
            encoded[module] = Encoded(values, slots[f"{module}.scale"].read(path), zeros)
        others = {key: slots[key].read(path).astype(np.float32) for key in self.changed}
        return encoded, others

    def is_kept(self, folder: Path, journal: Journal) -> bool:
        """Whether an earlier run wrote it, and it is what that wrote."""
        promised, path = journal.digest(self.name, 0), folder / self.name
        if promised is None or not path.is_file() or path.is_symlink():
            return False
        if path.stat().st_size != self.num_bytes:
            return False
        digest = hashlib.sha256()
        for piece in Place(path, 0, self.num_bytes).read():
            digest.update(piece)
        return digest.hexdigest() == promised


@contextmanager
def journal_in(folder: Path) -> Iterator[Journal]:
    """Open the journal of layers in the partial folder."""
    with closing(Journal(folder / JOURNAL)) as journal:
        yield journal


def _constant(content: np.ndarray):
    return lambda: iter((content,))
