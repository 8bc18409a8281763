"""The compressed-tensors layout: how quantized matrices are stored so that others read them.

Three formats are written and decoded here; `M` is the name of a matrix without `.weight`:

    pack-quantized   M.weight_packed int32 [out, ceil(in * bits / 32)], M.weight_scale
                     [out, groups], M.weight_shape int64 [2]; the value of column c lies in the bits
                     from (c * bits) % 32 on of word c * bits // 32, with 2^(bits-1) added;
                     where groups have zero points, M.weight_zero_point int32
                     [ceil(out * bits / 32), groups], packed likewise along the rows
    int-quantized    M.weight int8 [out, in], M.weight_scale [out, 1]
    float-quantized  M.weight float8_e4m3fn [out, in], M.weight_scale [out, 1]

A number is its value, less the zero point, times the scale of its row or group.  `config.json`
says which it is, in `quantization_config`.

Source: compressed-tensors 0.17, whose compressors made the goldens of the tests.
Read next: `quantize.py`, which writes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_tools.source import Source, in_rows
from checkpoints_tools.stored import BLOCK, StoredTensor
from rtp_jax.errors import CheckpointError

MAX_SCALE_BYTES = 1 << 30
WORD = 32  # bits of a packed word


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How matrices are stored, and what its name is in `quantization_config`."""

    format: str
    bits: int
    group: int | None  # numbers of a row that share a scale; None: all of them
    floating: bool = False
    dynamic: bool = False  # activations are rounded as well, each token by itself
    symmetric: bool = True  # no zero points
    order: str | None = None  # in which columns were rounded, where that was not their own

    @property
    def is_packed(self) -> bool:
        """Whether several values share a word."""
        return self.format == PACKED

    def config(self, ignored: list[str]) -> dict[str, Any]:
        """Write the `quantization_config` of a model."""
        kind = "float" if self.floating else "int"
        weights = {
            "num_bits": self.bits,
            "type": kind,
            "symmetric": self.symmetric,
            "dynamic": False,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group,
        }
        if self.order:
            weights["actorder"] = self.order
        activations = None
        if self.dynamic:
            activations = {
                "num_bits": self.bits,
                "type": kind,
                "symmetric": True,
                "dynamic": True,
                "strategy": "token",
            }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations,
            "output_activations": None,
            "format": self.format,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignored,
        }


PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack int8 values [rows, columns] into int32 words; missing columns at the end are zeros."""
    rows, columns = values.shape
    per_word = WORD // bits
    shifted = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint32)
    padded = np.zeros((rows, -(-columns // per_word) * per_word), np.uint32)
    padded[:, :columns] = shifted
    places = np.arange(per_word, dtype=np.uint32) * bits
    words = padded.reshape(rows, -1, per_word) << places
    return np.bitwise_or.reduce(words, axis=2).view(np.int32)


def unpack(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Undo `pack`: int8 values [rows, columns]."""
    places = np.arange(WORD // bits, dtype=np.uint32) * bits
    values = (words.view(np.uint32)[..., None] >> places) & np.uint32((1 << bits) - 1)
    flat = values.reshape(len(words), -1)[:, :columns]
    return (flat.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A quantized matrix of a source, as numbers."""

    source: Source
    values: StoredTensor
    scales: StoredTensor
    shape: tuple[int, int]
    bits: int | None  # None: not packed
    parts: tuple[str, ...]  # names of the tensors that it is made of
    zeros: StoredTensor | None = None

    @property
    def rows_at_once(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK // (4 * max(1, self.shape[1])))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 blocks [rows, inner]."""
        scales = whole(self.source, self.scales).astype(np.float32)
        zeros = None
        if self.zeros is not None and self.bits is not None:
            words = whole(self.source, self.zeros).T
            zeros = unpack(np.ascontiguousarray(words), self.bits, self.shape[0]).T
        stored = self.values.shape[1]
        size = self.rows_at_once * stored * self.values.dtype.itemsize
        start = 0
        for block in in_rows(
            self.source.read(self.values), self.values.dtype, stored, block_bytes=size
        ):
            values = block if self.bits is None else unpack(block, self.bits, self.shape[1])
            here, wide = slice(start, start + len(values)), values.astype(np.float32)
            if zeros is not None:
                wide -= self._over_columns(zeros[here])
            yield wide * self._over_columns(scales[here])
            start += len(values)

    def _over_columns(self, of_groups: np.ndarray) -> np.ndarray:
        """Repeat what each group has for its columns."""
        width = -(-self.shape[1] // of_groups.shape[1])
        return np.repeat(of_groups, width, axis=1)[:, : self.shape[1]]


def decoded_tensors(source: Source) -> dict[str, Decoded]:
    """Find the quantized matrices of a source, under the names that they had before."""
    tensors = source.by_name()
    found = {}
    for name, scales in tensors.items():
        if not name.endswith(".weight_scale"):
            continue
        module = name.removesuffix(".weight_scale")
        packed, shape = (
            tensors.get(f"{module}.weight_packed"),
            tensors.get(f"{module}.weight_shape"),
        )
        values = tensors.get(f"{module}.weight")
        if packed is not None and shape is not None:
            rows, columns = _shape(source, shape)
            bits = _bits(source, columns, packed.shape[-1] if packed.shape else 0)
            names = ("scale", "packed", "shape", "zero_point")
            parts = tuple(n for p in names if (n := f"{module}.weight_{p}") in tensors)
            zeros = tensors.get(f"{module}.weight_zero_point")
            each = Decoded(source, packed, scales, (rows, columns), bits, parts, zeros)
        elif values is not None and values.dtype in (np.int8, ml_dtypes.float8_e4m3fn):
            if len(values.shape) != 2:
                raise _wrong(source, module, f"its shape is {list(values.shape)}")
            each = Decoded(source, values, scales, values.shape, None, (name,))
        else:
            continue
        _check(each, module)
        found[f"{module}.weight"] = each
    return found


def _shape(source: Source, stored: StoredTensor) -> tuple[int, int]:
    if stored.num_bytes != 16 or stored.dtype != np.int64:
        raise _wrong(source, stored.name, f"it is {stored.dtype} {list(stored.shape)}")
    rows, columns = np.concatenate([*source.read(stored)]).view(np.int64)
    return int(rows), int(columns)


def _bits(source: Source, columns: int, words: int) -> int:
    """Tell 4 bits from 8 by the width of the words and, where both fit, by what the config says."""
    said = str((source.config or {}).get("quantization_config"))
    fits = [bits for bits in (4, 8) if -(-columns * bits // WORD) == words]
    return next((bits for bits in fits if f"'num_bits': {bits}" in said), fits[0] if fits else 0)


def _check(decoded: Decoded, module: str) -> None:
    """Refuse parts that do not fit together."""
    rows, columns = decoded.shape
    stored, scales = decoded.values.shape, decoded.scales.shape
    width = columns
    if decoded.bits is not None:
        if decoded.bits not in (4, 8) or decoded.values.dtype != np.int32:
            raise _wrong(decoded.source, module, "it is not packed in 4 or 8 bits")
        width = -(-columns * decoded.bits // WORD)
    groups = scales[1] if len(scales) == 2 else 0
    if stored != (rows, width) or len(scales) != 2 or scales[0] != rows:
        raise _wrong(decoded.source, module, f"values {list(stored)}, scales {list(scales)}")
    if decoded.zeros is not None:
        wanted = (-(-rows * (decoded.bits or 0) // WORD), groups)
        if decoded.zeros.shape != wanted or decoded.zeros.dtype != np.int32:
            raise _wrong(decoded.source, module, f"zero points {list(decoded.zeros.shape)}")
    if not 0 < groups <= max(1, columns) or columns % groups:
        raise _wrong(decoded.source, module, f"{columns} columns do not make {groups} groups")


def whole(source: Source, tensor: StoredTensor) -> np.ndarray:
    """Read a small tensor at once."""
    if tensor.num_bytes > MAX_SCALE_BYTES:
        raise _wrong(source, tensor.name, f"it has {tensor.num_bytes} bytes")
    pieces = [*source.read(tensor)] or [np.empty(0, np.uint8)]
    return np.concatenate(pieces).view(tensor.dtype).reshape(tensor.shape)


def _wrong(source: Source, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"RTPJ-3617 COMPRESSED_INVALID: {source.folder}, {name[:200]}: {reason}, which is not the"
        " compressed-tensors layout. Quantize the model again."
    )
