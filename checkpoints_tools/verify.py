"""Compare two checkpoints: names, shapes, hashes, errors; and with --text, what the models say.

The second one may be quantized in the compressed-tensors layout: its numbers are decoded first.
With one checkpoint, the tensors are compared with its manifest.
"""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from checkpoints_tools import text_quality
from checkpoints_tools.compressed import Decoded, decoded_tensors
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source, mismatch, open_source, regroup
from checkpoints_tools.stored import BLOCK, StoredTensor
from rtp_jax.errors import InvalidArgument
from rtp_jax.weights.files import open_regular, read_up_to
from rtp_jax.weights.table import some_of

SAME, DIFFERENT = 0, 3
SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What is different about one tensor; errors are None where they make no sense."""

    name: str
    what: str
    max_error: float | None = None  # largest difference of two numbers
    relative_error: float | None = None  # root mean square of differences over that of numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("first", metavar="A", help="a folder, or the name of a model")
    parser.add_argument("second", metavar="B", nargs="?", help="what to compare with A")
    parser.add_argument(
        "--max-error",
        type=float,
        default=0.0,
        metavar="X",
        help="accept tensors of this relative error (root mean square), for example 0.01",
    )
    text_quality.add_arguments(parser)


def run(parsed: argparse.Namespace, report: Report) -> int:
    """Verify."""
    first = open_source(parsed.first)
    if parsed.second is None:
        return _against_manifest(first, parsed, report)
    second = open_source(parsed.second)
    found = compare(first, second, report)
    bad = [d for d in found if d.relative_error is None or not d.relative_error <= parsed.max_error]
    errors = [d.relative_error for d in found if d.relative_error is not None]
    answer: dict[str, Any] = {
        "equal": not bad,
        "num_tensors": len(first.tensors),
        "identical": len(first.tensors) - len([d for d in found if d.what != "missing in A"]),
        "largest_relative_error": max(errors, default=0.0),
        "differences": [asdict(difference) for difference in found],
    }
    texts = []
    if parsed.text:
        quality = text_quality.compare(parsed, first.folder, second.folder, report)
        answer["text"] = quality.fields
        answer["equal"] = quality.passed and (not bad or bool(parsed.text_only))
        texts = quality.words
    report.result("verify", "\n".join([_words(answer, found), *texts]), answer)
    return SAME if answer["equal"] else DIFFERENT


def _words(answer: dict[str, Any], found: list[Difference]) -> str:
    lines = [f"{answer['identical']} of {answer['num_tensors']} tensors are identical"]
    for each in sorted(found, key=lambda d: -(d.relative_error or np.inf))[:SHOWN]:
        error = "" if each.max_error is None else f": largest difference {each.max_error:.3g}"
        part = "" if each.relative_error is None else f", relative {each.relative_error:.3g}"
        lines.append(f"  {each.name}: {each.what}{error}{part}")
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more")
    return "\n".join(lines)


def compare(first: Source, second: Source, report: Report) -> list[Difference]:
    """List the tensors that are not identical."""
    ours, theirs = first.by_name(), second.by_name()
    decoded = decoded_tensors(second)
    taken = {name for each in decoded.values() for name in each.parts}
    differences = [
        Difference(name=name, what="missing in A")
        for name in theirs
        if name not in ours and name not in taken
    ]
    report.start(sum(tensor.num_bytes for tensor in first.tensors))
    for name, tensor in ours.items():
        if name in decoded:
            found = _decoded_error(first, tensor, decoded[name])
        elif name in theirs:
            found = _difference(first, tensor, second, theirs[name])
        else:
            found = Difference(name=name, what="missing in B")
        if found:
            differences.append(found)
        report.advance(tensor.num_bytes, "compared", name)
    return differences


def _difference(
    first: Source, ours: StoredTensor, second: Source, theirs: StoredTensor
) -> Difference | None:
    name = ours.name
    if ours.shape != theirs.shape:
        return Difference(name=name, what=f"shape {list(ours.shape)} and {list(theirs.shape)}")
    alike = ours.dtype == theirs.dtype
    if alike and _identical(first.read(ours), second.read(theirs)):
        return None
    sizes = [BLOCK // 8 * tensor.dtype.itemsize for tensor in (ours, theirs)]
    lefts, rights = regroup(first.read(ours), sizes[0]), regroup(second.read(theirs), sizes[1])
    error = Error()
    for left, right in zip(lefts, rights, strict=True):
        error.add(left.view(ours.dtype), right.view(theirs.dtype))
    return error.difference(name, "values" if alike else f"{ours.dtype} and {theirs.dtype}")


def _identical(left: Iterator[np.ndarray], right: Iterator[np.ndarray]) -> bool:
    """Compare the bytes of two tensors of one size, up to the first difference."""
    pairs = zip(regroup(left, BLOCK), regroup(right, BLOCK), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def _decoded_error(first: Source, tensor: StoredTensor, decoded: Decoded) -> Difference:
    if tensor.shape != decoded.shape:
        shapes = f"shape {list(tensor.shape)} and {list(decoded.shape)}"
        return Difference(name=tensor.name, what=shapes)
    error, row = Error(), decoded.shape[1] * tensor.dtype.itemsize
    rows = decoded.rows_at_once
    blocks = regroup(first.read(tensor), rows * row)
    for left, right in zip(blocks, decoded.blocks(), strict=True):
        error.add(left.view(tensor.dtype).reshape(-1, decoded.shape[1]), right)
    return error.difference(tensor.name, "quantized in B")


class Error:
    """Sums up the differences of two tensors, block by block, in float64."""

    def __init__(self) -> None:
        self.largest = self.squares = self.power = 0.0

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Take two blocks of numbers."""
        with np.errstate(invalid="ignore", over="ignore"):
            exact = left.astype(np.float64)
            apart = np.where(exact == right.astype(np.float64), 0.0, exact - right)
            both = np.isnan(exact) & np.isnan(right.astype(np.float64))
        apart = np.abs(np.where(both, 0.0, apart))
        if apart.size:
            self.largest = float(np.maximum(self.largest, apart.max()))
            self.squares += float(np.square(apart).sum())
            self.power += float(np.square(np.where(np.isfinite(exact), exact, 0.0)).sum())

    def difference(self, name: str, what: str) -> Difference:
        """Give the result."""
        relative = np.sqrt(self.squares / self.power) if self.power else np.sqrt(self.squares)
        if not np.isfinite(self.largest) or not np.isfinite(relative):
            return Difference(name=name, what=f"{what}, and not all differences are finite")
        return Difference(
            name=name, what=what, max_error=self.largest, relative_error=float(relative)
        )


def _against_manifest(source: Source, parsed: argparse.Namespace, report: Report) -> int:
    """Read all tensors and companions, and compare them with what the manifest promises."""
    if source.manifest is None or parsed.text:
        raise InvalidArgument(
            f"RTPJ-3616 NOTHING_TO_COMPARE: {source.folder} has no manifest of its own, or --text"
            " was given. Name a second checkpoint to compare with."
        )
    promised = source.manifest.tensors
    names = {tensor.name for tensor in source.tensors}
    wrong = [f"{name} is missing" for name in promised if name not in names]
    wrong += [f"{name} is not in the manifest" for name in sorted(names - promised.keys())]
    report.start(source.num_bytes)
    for tensor in source.tensors:
        for piece in source.read(tensor):
            report.advance(piece.size, "compared", tensor.name)
    tensor_files = {entry.file for entry in promised.values()}
    for name, entry in source.manifest.files.items():
        if name not in tensor_files:
            digest = hashlib.sha256()
            for block in _file_blocks(source, name):
                digest.update(block)
            if digest.hexdigest() != entry.sha256:
                raise mismatch(str(source.folder / name), entry.sha256, digest)
    words = f"{len(names)} tensors are what the manifest says" if not wrong else some_of(wrong)
    report.result("verify", words, {"equal": not wrong, "differences": wrong})
    return DIFFERENT if wrong else SAME


def _file_blocks(source: Source, name: str) -> Iterator[bytes]:
    path = source.folder / name
    if ".." in name.split("/") or name.startswith("/"):
        raise InvalidArgument(
            f"RTPJ-3616 NOTHING_TO_COMPARE: the manifest names {name[:200]!r}, which is not a file"
            " of the folder. Convert the checkpoint again."
        )
    with open_regular(path) as file:
        while block := read_up_to(file, path, BLOCK):
            yield block
