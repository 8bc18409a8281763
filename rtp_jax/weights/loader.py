"""How does a checkpoint become the parameters of a model?  Plan from the headers, then read once.

Each file is read front to back.  A tensor is converted as soon as its bytes are there, into its row
of a host buffer that holds one whole (stacked) parameter; when the last row of a parameter is in,
the buffer is handed to `place`.  Buffers begin on a 64-byte boundary, because there jax takes them
over without a copy on a CPU.  A matrix that is held in another encoding gets a buffer for each part
of each row, and these are encoded and dropped as soon as the last of them is full.  The peak on the
host is the parameters as held, two blocks, twice the largest tensor, and those matrices of which a
part is still to come.

Read next: `plan.py` for what is checked before, `reader.py` for the reading.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.checkpoint import Checkpoint, read_checkpoint
from rtp_jax.weights.convert import aligned, overflowed, write
from rtp_jax.weights.encoder import Encoder, WrongPart
from rtp_jax.weights.plan import Parameters, Placement, Plan, plan
from rtp_jax.weights.reader import BLOCK, ByteStream, read_blocks
from rtp_jax.weights.safetensors import Header, Tensor
from rtp_jax.weights.table import WeightTable, as_is

Place = Callable[[str, np.ndarray], jax.Array]
Row = tuple[int, ...]  # of a stacked parameter


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come; bytes count what was really read, headers included."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    seconds: float


def load(
    folder: Path,
    table: WeightTable,
    parameters: Parameters,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
    place: Place | None = None,
    block_bytes: int = BLOCK,
) -> dict[str, jax.Array]:
    """Load a checkpoint.

    Args:
      folder: holds `model.safetensors`, or several files and their index.
      table: which tensor becomes which parameter.
      parameters: dotted path to shape and dtype of every parameter; floats are rounded to it.
      encoders: for the paths that are held in another encoding than they are stored in.
      progress: called after each block, and at the end.
      place: turns a complete host array, which is then its own, into a device array.  By default it
        goes to the default device.
      block_bytes: how much is read at once; two blocks are in memory.

    Returns:
      Dotted path to array, for each of `parameters`, or for what its encoder holds instead.
    """
    checkpoint = read_checkpoint(folder)
    loading = Loading(
        checkpoint,
        plan(checkpoint.tensors(), table, parameters),
        parameters,
        encoders=encoders or {},
        report=progress or (lambda _: None),
        place=place or (lambda _, array: jax.device_put(array)),
        block_bytes=block_bytes,
    )
    with ThreadPoolExecutor(1, "read-weights") as reader:
        for header in checkpoint.files:
            loading.read(header, reader)
    return loading.loaded


class Loading:
    """A load on its way: parameters that are complete, and buffers of those that are not."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        parameters: Parameters,
        *,
        encoders: Mapping[str, Encoder],
        report: Callable[[LoadProgress], None],
        place: Place,
        block_bytes: int,
    ):
        self.plan, self.parameters, self.report, self.place = plan, parameters, report, place
        self.encoders = encoders
        self.loaded: dict[str, jax.Array] = {}
        self.rows_left = dict(plan.num_rows)
        self.incomplete: dict[str, np.ndarray] = {}  # held parameters that have rows to come
        self.to_encode: dict[tuple[str, Row], np.ndarray] = {}  # rows whose matrix is being read
        self.source_of: dict[tuple[str, Row], tuple[Tensor, Header]] = {}  # what filled them
        self.parts_left = Counter(
            (tuple(encoders[placement.parameter].parts), placement.row)
            for placements in plan.placements_of.values()
            for placement in placements
            if placement.parameter in encoders
        )
        tensors = checkpoint.tensors()
        largest = max((t.end - t.begin for t in tensors.values()), default=0)
        byte = np.dtype(np.uint8)
        self.staging = aligned((largest,), byte)  # takes memory only where it is written
        self.blocks = aligned((block_bytes,), byte), aligned((block_bytes,), byte)
        self.bytes_done = sum(header.data_start for header in checkpoint.files)
        self.bytes_total, self.tensors_done, self.tensors_total = checkpoint.size, 0, len(tensors)
        self.started = time.perf_counter()

    def read(self, header: Header, reader: Executor) -> None:
        """Read one file and place its tensors."""
        with closing(read_blocks(header, reader, self.blocks, self._count)) as blocks:
            stream = ByteStream(blocks)
            for tensor in header.tensors:
                self._read_tensor(tensor, stream, header)
                self.tensors_done += 1
            stream.finish()
        self._count(0)

    def _read_tensor(self, tensor: Tensor, stream: ByteStream, header: Header) -> None:
        placements, num_bytes = self.plan.placements_of[tensor.name], tensor.end - tensor.begin
        if not placements:
            for _ in stream.pieces(num_bytes):
                pass  # ignored, and read, because the disk reads on anyway
            return
        if self._comes_in_pieces(tensor, header):
            target, start = self._row(placements[0]).reshape(-1), 0
            for piece in stream.pieces(num_bytes):
                part = piece.view(tensor.dtype)
                _write(target[start : start + part.size], part, tensor, header)
                start += part.size
        else:
            source = np.ndarray(tensor.shape, tensor.dtype, stream.take(num_bytes, self.staging))
            for placement in placements:
                _write(self._row(placement), placement.transform.apply(source), tensor, header)
        for placement in placements:
            self._row_is_full(placement, tensor, header)

    def _comes_in_pieces(self, tensor: Tensor, header: Header) -> bool:
        """Whether a tensor needs no gathering: it keeps its layout, and no number is cut in two."""
        placements, size = self.plan.placements_of[tensor.name], tensor.dtype.itemsize
        whole = (header.data_start + tensor.begin) % size == 0 == len(self.blocks[0]) % size
        return len(placements) == 1 and placements[0].transform is as_is and whole

    def _row(self, placement: Placement) -> np.ndarray:
        """The part of a host buffer that a tensor fills."""
        path = placement.parameter
        parameter = self.parameters[path]
        if path not in self.encoders:
            return self._held(path, parameter)[(*placement.row, ...)]
        key = path, placement.row
        if key not in self.to_encode:
            shape = parameter.shape[len(placement.row) :]
            self.to_encode[key] = aligned(shape, np.dtype(parameter.dtype))
        return self.to_encode[key]

    def _held(self, path: str, described: jax.ShapeDtypeStruct) -> np.ndarray:
        if path not in self.incomplete:
            self.incomplete[path] = aligned(described.shape, np.dtype(described.dtype))
        return self.incomplete[path]

    def _row_is_full(self, placement: Placement, tensor: Tensor, header: Header) -> None:
        path = placement.parameter
        held, paths = [path], [path]
        if encoder := self.encoders.get(path):
            held, paths = list(encoder.held), list(encoder.parts)
            self.source_of[path, placement.row] = tensor, header
            self.parts_left[tuple(encoder.parts), placement.row] -= 1
            if not self.parts_left[tuple(encoder.parts), placement.row]:
                self._encode(encoder, placement.row)
        self.rows_left[path] -= 1
        if not any(self.rows_left[one] for one in paths):
            for name in held:
                self.loaded[name] = self.place(name, self.incomplete.pop(name))

    def _encode(self, encoder: Encoder, row: Row) -> None:
        """Encode one matrix whose parts are all there."""
        into = {
            name: self._held(name, described)[(*row, ...)]
            for name, described in encoder.held.items()
        }
        paths = {part: path for path, part in encoder.parts.items()}
        parts = {
            part: self.to_encode.pop((path, row))
            for part, path in paths.items()
            if (path, row) in self.to_encode  # or it is absent
        }
        try:
            encoder.encode(parts, into)
        except WrongPart as wrong:
            tensor, header = self.source_of[paths[wrong.part], row]
            raise CheckpointError(
                f"RTPJ-3103 QUANTIZED_TENSOR_WRONG: {header.path}, tensor {tensor.name}:"
                f" {wrong.reason}. Use the config.json of this checkpoint, or quantize anew."
            ) from wrong

    def _count(self, num_bytes: int) -> None:
        self.bytes_done += num_bytes
        seconds = time.perf_counter() - self.started
        self.report(
            LoadProgress(
                self.bytes_done, self.bytes_total, self.tensors_done, self.tensors_total, seconds
            )
        )


def _write(target: np.ndarray, source: np.ndarray, tensor: Tensor, header: Header) -> None:
    write(target, source)
    if overflowed(target, source):
        raise CheckpointError(
            f"RTPJ-3102 NUMBER_TOO_LARGE: {header.path}, tensor {tensor.name}: numbers of "
            f"{source.dtype} are infinite in {target.dtype}. Run the model in bfloat16 or float32."
        )
