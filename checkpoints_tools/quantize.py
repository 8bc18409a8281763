"""Quantize the matrices of a model's layers, in a layout that others read.

The output is in the compressed-tensors layout: transformers and vLLM load it.  By plain rounding
each number goes to the nearest value of its row or group; the scale is the largest magnitude over
half the range of values, so that the largest number is stored exactly or clipped by half a step.
GPTQ and AWQ look at what the model does with a text.  Embedding, head, norms and routers stay as
they are, but for what AWQ folds into norms.

Read next: `calibration/command.py` for GPTQ and AWQ.
"""

import argparse
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_tools import output_options
from checkpoints_tools.compressed import FLOATS, INTEGERS, PACKED, WORD, Scheme, pack
from checkpoints_tools.convert import FLOATS as FLOAT_DTYPES
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source, in_rows, open_source
from checkpoints_tools.stored import BLOCK, StoredTensor
from checkpoints_tools.writers import OutputTensor
from rtp_jax.errors import InvalidArgument
from rtp_jax.late_imports import late

calibration = late("checkpoints_tools.calibration.command")  # and jax

SCHEMES = {
    "int8": Scheme(format=PACKED, bits=8, group=None),
    "int8_dynamic": Scheme(format=INTEGERS, bits=8, group=None, dynamic=True),
    "int4": Scheme(format=PACKED, bits=4, group=128),
    "fp8": Scheme(format=FLOATS, bits=8, group=None, floating=True, dynamic=True),
}
CALIBRATED = {  # need activations of the model
    "gptq": Scheme(format=PACKED, bits=4, group=128),
    "awq": Scheme(format=PACKED, bits=4, group=128, symmetric=False),
}
CALIBRATION_TOKENS = 32768
LEAST_TOKENS = 64  # fewer say nothing about a model
GROUPS = (32, 64, 128)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP8_MAX = 448.0
IN_LAYERS = re.compile(r"(^|\.)layers\.\d+\.")
NOT_QUANTIZED = ("*norm*", "*.mlp.gate.weight", "*router*", "*.block_sparse_moe.gate.weight")
EMBEDDINGS = ("*embed*", "*.wte.weight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", metavar="SRC", help="a folder, or the name of a model")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--scheme", required=True, choices=(*SCHEMES, *CALIBRATED))
    parser.add_argument(
        "--group-size", type=int, choices=GROUPS, help="numbers that share a scale, in 4 bits"
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="PATTERN", help="keep these tensors too"
    )
    group = parser.add_argument_group("calibration, for gptq and awq")
    group.add_argument("--calibration", metavar="FILE", help="text, or JSONL: text or messages")
    group.add_argument(
        "--calibration-tokens",
        type=int,
        metavar="N",
        help=f"read at most so many, from all over the file ({CALIBRATION_TOKENS})",
    )
    group.add_argument(
        "--act-order", action="store_true", help="gptq: round the most used columns first"
    )
    output_options.add_output_arguments(parser)


def run(parsed: argparse.Namespace, report: Report) -> int:
    """Quantize."""
    scheme = _scheme(parsed)
    source = open_source(parsed.source)
    to = output_options.target(parsed, source)
    _check_source(source)
    matrices, ignored = chosen(source, scheme, tuple(parsed.ignore))
    for name in ignored:
        report.event("kept", f"not quantized: {name}", name=name)
    if parsed.scheme in CALIBRATED:
        return calibration.run(parsed, report, source, to, Chosen(scheme, matrices, ignored))
    names = {tensor.name for tensor in matrices}
    tensors = [
        output
        for tensor in source.tensors
        for output in (
            Rounding(source, tensor, scheme).outputs()
            if tensor.name in names
            else [output_options.kept(source, tensor)]
        )
    ]
    config = {**(source.config or {}), "quantization_config": scheme.config(ignored)}
    return output_options.finish(
        parsed,
        report,
        to=to,
        source=source,
        tensors=tensors,
        config=config,
        choices={
            "command": "quantize",
            "scheme": parsed.scheme,
            "group": scheme.group,
            "ignore": parsed.ignore,
        },
    )


def _scheme(parsed: argparse.Namespace) -> Scheme:
    _check_calibration(parsed)
    scheme = {**SCHEMES, **CALIBRATED}[parsed.scheme]
    if parsed.group_size and scheme.group is None:
        raise InvalidArgument(
            f"RTPJ-3631 QUANTIZE_INVALID: --group-size belongs to schemes of 4 bits, and"
            f" {parsed.scheme} has one scale for each row. Leave it out."
        )
    order = "weight" if parsed.act_order else None
    return replace(scheme, group=parsed.group_size or scheme.group, order=order)


def _check_calibration(parsed: argparse.Namespace) -> None:
    """Refuse options that do not belong together."""
    reason, is_calibrated = None, parsed.scheme in CALIBRATED
    tokens = parsed.calibration_tokens
    if is_calibrated and not parsed.calibration:
        reason = f"--scheme {parsed.scheme} runs the model over a text. Give --calibration FILE"
    elif not is_calibrated and parsed.calibration is not None:
        reason = f"--calibration belongs to gptq and awq, not to {parsed.scheme}. Leave it out"
    elif not is_calibrated and tokens is not None:
        words = f"belongs to gptq and awq, not to {parsed.scheme}"
        reason = f"--calibration-tokens {words}. Leave it out"
    elif tokens is not None and tokens < LEAST_TOKENS:
        least = f"at least {LEAST_TOKENS} are needed"
        reason = f"--calibration-tokens is {tokens}, {least}. Raise it"
    elif parsed.act_order and parsed.scheme != "gptq":
        reason = f"--act-order belongs to gptq, not to {parsed.scheme}. Leave it out"
    if reason:
        raise InvalidArgument(
            f"RTPJ-3632 QUANTIZE_OPTIONS_INVALID: {reason}.",
            field="calibration",
        )


def _check_source(source: Source) -> None:
    reason = None
    if source.config is None:
        reason = "has no config.json to say in which layout its matrices are"
    elif source.config.get("quantization_config"):
        reason = "is quantized already"
    if reason:
        raise InvalidArgument(
            f"RTPJ-3631 QUANTIZE_INVALID: {source.folder} {reason}. Give the folder of the original"
            " model."
        )


class Chosen(NamedTuple):
    """What becomes of a model."""

    scheme: Scheme
    matrices: list[StoredTensor]  # that are quantized
    ignored: list[str]  # linear modules that are not


def chosen(
    source: Source, scheme: Scheme, patterns: tuple[str, ...]
) -> tuple[list[StoredTensor], list[str]]:
    """Choose the matrices to quantize, and list the linear modules that are not."""
    matrices, ignored = [], []
    for tensor in source.tensors:
        name = tensor.name
        is_matrix = len(tensor.shape) == 2 and name.endswith(".weight")
        if not is_matrix or any(fnmatchcase(name, p) for p in EMBEDDINGS):
            continue
        kept = not IN_LAYERS.search(name) or tensor.dtype not in FLOAT_DTYPES or 0 in tensor.shape
        kept |= bool(scheme.group and tensor.shape[1] % scheme.group)
        if kept or any(fnmatchcase(name, p) for p in (*NOT_QUANTIZED, *patterns)):
            ignored.append(name.removesuffix(".weight"))
        else:
            matrices.append(tensor)
    if not matrices:
        raise InvalidArgument(
            f"RTPJ-3631 QUANTIZE_INVALID: {source.folder} has no matrix in its layers that this"
            " scheme can hold. Check --ignore and --group-size."
        )
    if "lm_head" not in ignored:  # a head that shares the embedding is a linear module as well
        ignored.append("lm_head")
    return matrices, ignored


@dataclass
class Rounding:
    """One matrix on its way into a scheme."""

    source: Source
    tensor: StoredTensor
    scheme: Scheme

    def outputs(self) -> list[OutputTensor]:
        """Describe the tensors that it becomes."""
        (rows, columns), scheme = self.tensor.shape, self.scheme
        module = self.tensor.name.removesuffix(".weight")
        scales = (rows, columns // scheme.group if scheme.group else 1)
        scale = OutputTensor(f"{module}.weight_scale", self._scale_dtype, scales, self._scales)
        if not scheme.is_packed:
            dtype = FP8 if scheme.floating else np.dtype(np.int8)
            return [OutputTensor(f"{module}.weight", dtype, (rows, columns), self._values), scale]
        words = -(-columns * scheme.bits // WORD)
        shape = np.array([rows, columns], np.int64).view(np.uint8)
        int32, int64 = np.dtype(np.int32), np.dtype(np.int64)
        return [
            OutputTensor(f"{module}.weight_packed", int32, (rows, words), self._values),
            scale,
            OutputTensor(f"{module}.weight_shape", int64, (2,), lambda: iter((shape,))),
        ]

    @property
    def _scale_dtype(self) -> np.dtype:
        return self.tensor.dtype if self.tensor.dtype.itemsize < 4 else np.dtype(np.float32)

    @functools.cached_property
    def _known(self) -> list[np.ndarray]:
        """Scales of the blocks of rows, once they were computed; they are small."""
        return []

    def _rows(self) -> Iterator[np.ndarray]:
        tensor = self.tensor
        pieces = self.source.read(tensor)
        for block in in_rows(pieces, tensor.dtype, tensor.shape[1], block_bytes=BLOCK):
            yield block.astype(np.float32)

    def _values(self) -> Iterator[np.ndarray]:
        self._known.clear()
        for rows in self._rows():
            scales = scales_of(rows, self.scheme, self._scale_dtype)
            self._known.append(scales)
            values = round_to(rows, scales, self.scheme)
            yield np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _scales(self) -> Iterator[np.ndarray]:
        known = sum(map(len, self._known)) == self.tensor.shape[0]
        blocks = (scales_of(rows, self.scheme, self._scale_dtype) for rows in self._rows())
        for scales in self._known if known else blocks:  # after --resume they are computed again
            yield np.ascontiguousarray(scales).reshape(-1).view(np.uint8)
        self._known.clear()


def scales_of(rows: np.ndarray, scheme: Scheme, dtype: np.dtype) -> np.ndarray:
    """Give the scale of each row or group, rounded to the dtype in which it is stored.

    As compressed-tensors does it: a group of zeros gets the smallest step of the dtype.
    """
    half = FP8_MAX if scheme.floating else ((1 << scheme.bits) - 1) / 2
    groups = rows.reshape(len(rows), -1, scheme.group or rows.shape[1])
    scales = (np.abs(groups).max(-1) / np.float32(half)).astype(dtype)
    return np.where(scales == 0, ml_dtypes.finfo(dtype).eps.astype(dtype), scales)


def round_to(rows: np.ndarray, scales: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Round numbers to values of the scheme, and pack them if it does."""
    groups = rows.reshape(len(rows), scales.shape[1], -1)
    steps = groups / scales.astype(np.float32)[..., None]
    if scheme.floating:
        return np.clip(steps, -FP8_MAX, FP8_MAX).astype(FP8).reshape(rows.shape)
    half = 1 << (scheme.bits - 1)
    values = np.clip(np.rint(steps), -half, half - 1).astype(np.int8).reshape(rows.shape)
    return pack(values, scheme.bits) if scheme.is_packed else values
