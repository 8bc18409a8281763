"""Layer after layer: read, quantized by what it is given, written, and run for the next one.

What is in memory: the residual stream of all tokens, `tokens x hidden` float32; the numbers of one
layer, once as they were and once as they become, float32; for GPTQ X' X, its factor and one more
of that size, `inner^2` float64 each, of the widest matrix; and the activations of one step.

A layer is given what the quantized ones before it make of the text, and within a layer the map back
is given what the quantized maps make.  So every error is seen by what comes behind it.

Read next: `methods.py` for what is done with a layer, `kept_layers.py` for where it goes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints_tools.calibration.grid import numbers_of
from checkpoints_tools.calibration.halves import HALVES, SAMPLE, Inputs, Layer
from checkpoints_tools.calibration.kept_layers import LayerFile, journal_in
from checkpoints_tools.calibration.layer_run import PROGRAMS, Function, LayerRun
from checkpoints_tools.calibration.methods import Method
from checkpoints_tools.calibration.steps import Step
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source, in_rows
from checkpoints_tools.stored import BLOCK, StoredTensor
from rtp_jax.errors import CheckpointError
from rtp_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Layers:
    """The layers of a model, and all that is needed to quantize them."""

    source: Source
    programs: LayerRun
    tensors: Sequence[Mapping[str, StoredTensor]]  # of each layer, by path
    embedding: StoredTensor
    files: Sequence[LayerFile]
    steps: Sequence[Step]
    method: Method

    def quantize(self, folder: Path, report: Report) -> None:
        """Quantize the layers whose files are not in a folder yet."""
        with journal_in(folder) as journal:
            kept = [file.is_kept(folder, journal) for file in self.files]
            if all(kept):
                return
            states, done = self.embedded(), 0
            for file, is_kept in zip(self.files, kept, strict=True):
                began = time.monotonic()
                layer = self.read(file)
                if is_kept:
                    self._take(layer, file, folder)
                self.advance(layer, states, solve=not is_kept)
                if not is_kept:
                    digest = file.write(folder, layer.encoded, layer.numbers)
                    journal.add(file.name, 0, digest)
                done += len(file.modules)
                seconds = time.monotonic() - began
                self._tell(report, layer, is_kept=is_kept, done=done, seconds=seconds)

    def advance(self, layer: Layer, states: list[np.ndarray], *, solve: bool) -> None:
        """Run a layer over the residual streams of all steps, once it is quantized if asked."""
        for half in HALVES:
            programs = PROGRAMS[half.name]
            if solve and layer.wanted & {*half.maps, half.back}:
                inputs = self._collected(programs.enter, layer, states)
                self.method.enter(half, layer, inputs)
                given = self._collected(programs.between, layer, states)
                self.method.leave(half, layer, inputs, given)
            window = self.programs.spec.windows[layer.number]
            for place, step in enumerate(self.steps):
                before = states[place]
                states[place] = self.programs.half(programs, layer.numbers, before, step, window)

    def _outputs(
        self, function: Function, layer: Layer, states: Sequence[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Run a function of a layer over all steps, one by one."""
        window = self.programs.spec.windows[layer.number]
        for step, state in zip(self.steps, states, strict=True):
            yield self.programs.run(function, layer.numbers, state, step, window)

    def _collected(self, function: Function, layer: Layer, states: Sequence[np.ndarray]) -> Inputs:
        """Remember what a function makes of all tokens."""
        tokens = sum(step.num_tokens for step in self.steps)
        inputs = Inputs(self.method.wants_gram, max(1, tokens // SAMPLE))
        outputs = self._outputs(function, layer, states)
        for step, x in zip(self.steps, outputs, strict=True):
            real = x[: step.num_tokens]
            self._check_finite(real, f"layer {layer.number}, given this text,")
            inputs.add(real)
        return inputs

    def _check_finite(self, numbers: np.ndarray, what: str) -> None:
        """Refuse numbers that are none, or whose squares are: all behind them would be as well."""
        if not np.isfinite(np.vdot(numbers, numbers)):
            raise CheckpointError(
                f"RTPJ-3634 CALIBRATION_NOT_FINITE: {self.source.folder}: {what} has numbers that"
                " are infinite, nearly so, or none, so there is nothing to go by. Look at the"
                " checkpoint: rtp-jax-ckpt verify."
            )

    def _tell(
        self, report: Report, layer: Layer, *, is_kept: bool, done: int, seconds: float
    ) -> None:
        every = sum(len(file.modules) for file in self.files)
        what = "kept" if is_kept else f"outputs off by {layer.error:.2%}"
        report.event(
            "layer",
            f"layer {layer.number + 1} of {len(self.files)}: {what},"
            f" {done} of {every} matrices, {seconds:.1f} s",
            layer=layer.number + 1,
            layers=len(self.files),
            kept=is_kept,
            matrices_done=done,
            matrices=every,
            error=None if is_kept else layer.error,
            seconds=round(seconds, 3),
        )

    def embedded(self) -> list[np.ndarray]:
        """Look up the tokens of all steps, reading the table front to back."""
        tensor = self.embedding
        states = [np.zeros((len(step.ids), tensor.shape[1]), np.float32) for step in self.steps]
        first = 0
        for block in in_rows(
            self.source.read(tensor), tensor.dtype, tensor.shape[1], block_bytes=BLOCK
        ):
            for step, state in zip(self.steps, states, strict=True):
                here = np.flatnonzero((step.ids >= first) & (step.ids < first + len(block)))
                state[here] = block[step.ids[here] - first].astype(np.float32)
            first += len(block)
        return states

    def read(self, file: LayerFile) -> Layer:
        """Read a layer of the source."""
        tensors = self.tensors[file.number]
        numbers = {path: _whole(self.source, tensor) for path, tensor in tensors.items()}
        for path, each in numbers.items():
            self._check_finite(each, f"tensor {tensors[path].name}")
        return Layer(
            file.number,
            numbers,
            frozenset(file.modules),
            file.kind,
            spread_of(self.programs.spec),
            {path: tensor.dtype for path, tensor in tensors.items()},
        )

    def _take(self, layer: Layer, file: LayerFile, folder: Path) -> None:
        """Put what an earlier run has computed into a layer."""
        encoded, others = file.read(folder)
        layer.numbers |= {f"{path}.kernel": numbers_of(each) for path, each in encoded.items()}
        layer.numbers |= others


def spread_of(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Say from which row of the carrier each input of the map back comes, in each half.

    Query heads that share a KV head are given the same values.
    """
    rows = np.arange(spec.num_kv_heads * spec.head_dim).reshape(spec.num_kv_heads, -1)
    shared = np.repeat(rows, spec.num_heads // spec.num_kv_heads, axis=0)
    return {"attention": shared.reshape(-1), "mlp": np.arange(spec.mlp_size)}


def _whole(source: Source, tensor: StoredTensor) -> np.ndarray:
    """Read the numbers of a tensor as float32."""
    read = np.concatenate([*source.read(tensor)]).view(tensor.dtype)
    return read.reshape(tensor.shape).astype(np.float32)
