"""How each matrix of a model gets from what a checkpoint stores to what the model holds.

What several devices share is encoded as one device would encode it, and then divided: a row has
the same scales on any number of devices.

Read next: `layers/matrix.py` for what may be held, `weights/loader.py` for who calls this.
"""

from collections.abc import Mapping

import jax
import numpy as np

from rtp_jax.kernels.native import packing
from rtp_jax.layers.encoding import ORDER, SCALES, VALUES, ZEROS, Encoding
from rtp_jax.models.structure import Skeleton
from rtp_jax.quant.quantized_array import NATIVE
from rtp_jax.quant.schemes import SCHEMES, fitting, num_groups, quantize
from rtp_jax.weights.encoder import Encoder
from rtp_jax.weights.quantized import parts_of
from rtp_jax.weights.unpack import unpack

Arrays = Mapping[str, np.ndarray]
NUMBERS = ""  # the only part of a matrix that is stored as plain numbers


def encoders(bones: Skeleton) -> dict[str, Encoder]:
    """Give an encoder to every stored part of a matrix that is not held as it is stored."""
    found: dict[str, Encoder] = {}
    for path, encoding in bones.encodings.items():
        names = [path + end for end in (VALUES, SCALES, ZEROS, ORDER)]
        held = {name: bones.held[name] for name in names if name in bones.held}
        if encoding.source is not None:
            encoder = _of_quantized(path, encoding, held, bones.stored)
        elif encoding.layout == NATIVE or encoding.scheme.is_quantized:
            encoder = _of_numbers(path, encoding, held)
        else:
            continue
        found |= dict.fromkeys(encoder.parts, encoder)
    return found


def _of_numbers(path: str, encoding: Encoding, held: Mapping[str, jax.ShapeDtypeStruct]) -> Encoder:
    scheme, (rows, columns) = encoding.scheme, encoding.parts
    whole = fitting(SCHEMES[scheme.name], encoding.whole[1]) if scheme.is_quantized else scheme
    repeats = (whole.group or 1) // (scheme.group or 1)  # groups of a device are parts of groups

    def pack(parts: Arrays, into: Arrays) -> None:
        packing.pack_rows(parts[NUMBERS], scheme, into[path + VALUES])

    def pack_parts(parts: Arrays, into: Arrays) -> None:
        if scheme.is_quantized and (repeats > 1 or not scheme.group):  # devices share scales
            values, scales = quantize(parts[NUMBERS], whole)
            scales = np.repeat(scales, repeats, axis=1)
            _pack_values(encoding, values, scales, None, into[path + VALUES])
            return
        divided = _divided(parts[NUMBERS], rows, columns)
        for numbers, blocks in zip(
            divided, np.split(into[path + VALUES], len(divided)), strict=True
        ):
            packing.pack_rows(np.ascontiguousarray(numbers), scheme, blocks)

    def encode(parts: Arrays, into: Arrays) -> None:
        into[path + VALUES][:], scales = quantize(parts[NUMBERS], whole)
        into[path + SCALES][:] = np.repeat(scales, repeats, axis=1)

    if encoding.layout != NATIVE:
        return Encoder({path: NUMBERS}, held, encode, block_rows=1)
    if columns == 1 and (rows == 1 or encoding.outer % packing.BLOCK_ROWS == 0):
        return Encoder({path: NUMBERS}, held, pack, packing.BLOCK_ROWS)
    return Encoder({path: NUMBERS}, held, pack_parts)


def _pack_values(
    encoding: Encoding,
    values: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    into: np.ndarray,
) -> None:
    """Pack an encoded matrix for each device, end to end."""
    rows, columns = encoding.parts
    groups = columns if encoding.scheme.group else 1
    repeats = columns // groups

    def of_groups(array: np.ndarray) -> list[np.ndarray]:
        return [part for part in _divided(array, rows, groups) for _ in range(repeats)]

    every = _divided(values, rows, columns)
    offsets = [None] * len(every) if zeros is None else of_groups(zeros)
    blocks = np.split(into, len(every))
    for part in zip(every, of_groups(scales), offsets, blocks, strict=True):
        packing.pack_values(*part[:3], encoding.scheme, part[3])


def _divided(array: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """Cut a matrix into equal parts, as views: those of the first rows come first."""
    return [part for some in np.split(array, rows) for part in np.split(some, columns, axis=1)]


def _of_quantized(
    path: str,
    encoding: Encoding,
    held: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, jax.ShapeDtypeStruct],
) -> Encoder:
    (outer, inner), scheme, source = encoding.whole, encoding.scheme, encoding.source
    assert source is not None
    repeats = num_groups(scheme, inner) // num_groups(source.scheme, inner)

    def encode(parts: Arrays, into: Arrays) -> None:
        values, scales, zeros, order = unpack(source, parts)
        scales = np.repeat(scales, repeats, axis=1)
        zeros = None if zeros is None else np.repeat(zeros, repeats, axis=1)
        if order is not None:
            into[path + ORDER][:] = order
        if encoding.layout == NATIVE:
            _pack_values(encoding, values, scales, zeros, into[path + VALUES])
            return
        into[path + VALUES][:], into[path + SCALES][:] = values, scales
        if zeros is not None:
            into[path + ZEROS][:] = zeros

    names = {f"{path}.{part.name}": part.name for part in parts_of(source, outer, inner)}
    names = {stored_path: name for stored_path, name in names.items() if stored_path in stored}
    return Encoder(names, held, encode)
