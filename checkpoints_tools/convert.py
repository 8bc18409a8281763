"""Convert a checkpoint: safetensors to and from Orbax, other file sizes, another dtype.

Tensors keep their names and, unless --dtype is given, every byte.  They are read once, in the order
in which they lie, and written block by block, so that memory does not grow with the model.
"""

import argparse
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from checkpoints_tools import output_options
from checkpoints_tools.companions import with_dtype
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source, open_source, regroup
from checkpoints_tools.stored import BLOCK, StoredTensor
from checkpoints_tools.writers import OutputTensor
from rtp_jax.errors import CheckpointError, InvalidArgument

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
FLOATS = (*DTYPES.values(), np.dtype(np.float64))  # what is converted; anything else is kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", metavar="SRC", help="a folder, or the name of a model")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="round floats to it")
    output_options.add_output_arguments(parser, formats=True)


def run(parsed: argparse.Namespace, report: Report) -> int:
    """Convert."""
    source = open_source(parsed.source)
    to = output_options.target(parsed, source)
    tensors, config = output_options.unchanged(source), None
    for name in source.not_arrays:
        report.event("left_behind", f"not an array: {name}", name=name)
    if parsed.dtype:
        check_convertible(source)
        tensors = [_converted(source, tensor, DTYPES[parsed.dtype]) for tensor in source.tensors]
        config = None if source.config is None else with_dtype(source.config, parsed.dtype)
    return output_options.finish(
        parsed,
        report,
        to=to,
        source=source,
        tensors=tensors,
        config=config,
        choices={"command": "convert", "to": parsed.to, "dtype": parsed.dtype},
    )


def check_convertible(source: Source) -> None:
    """Refuse to round the scales of a quantized checkpoint."""
    quantized = [t.name for t in source.tensors if t.dtype.name.startswith("float8")]
    if quantized or (source.config or {}).get("quantization_config"):
        raise InvalidArgument(
            f"RTPJ-3614 DTYPE_OF_QUANTIZED: {source.folder} is quantized, and rounding its scales"
            " would change the model. Convert it without --dtype, or start from the original."
        )


def _converted(source: Source, tensor: StoredTensor, dtype: np.dtype) -> OutputTensor:
    if tensor.dtype not in FLOATS or tensor.dtype == dtype:
        return OutputTensor(tensor.name, tensor.dtype, tensor.shape, lambda: source.read(tensor))
    return OutputTensor(tensor.name, dtype, tensor.shape, lambda: _rounded(source, tensor, dtype))


def _rounded(source: Source, tensor: StoredTensor, dtype: np.dtype) -> Iterator[np.ndarray]:
    for block in regroup(source.read(tensor), BLOCK):
        numbers = block.view(tensor.dtype)
        yield rounded(numbers, dtype, f"{source.folder}, tensor {tensor.name}").view(np.uint8)


def rounded(numbers: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Round each number to the nearest of another dtype; a finite one stays finite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = numbers.astype(dtype)
        lost = np.isinf(result) & np.isfinite(numbers)
    if lost.any():
        raise CheckpointError(
            f"RTPJ-3102 NUMBER_TOO_LARGE: {what}: numbers of {numbers.dtype} are infinite in"
            f" {dtype}. Choose --dtype bfloat16 or float32."
        )
    return result
