"""How each matrix of a model gets from what a checkpoint stores to what the model holds.

Read next: `layers/matrix.py` for what may be held, `weights/loader.py` for who calls this.
"""

from collections.abc import Mapping

import jax
import numpy as np

from rtp_jax.kernels.native import packing
from rtp_jax.layers.encoding import ORDER, SCALES, VALUES, ZEROS, Encoding
from rtp_jax.models.structure import Skeleton
from rtp_jax.quant.quantized_array import NATIVE
from rtp_jax.quant.schemes import num_groups, quantize
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
    def pack(parts: Arrays, into: Arrays) -> None:
        packing.pack_rows(parts[NUMBERS], encoding.scheme, into[path + VALUES])

    def encode(parts: Arrays, into: Arrays) -> None:
        into[path + VALUES][:], into[path + SCALES][:] = quantize(parts[NUMBERS], encoding.scheme)

    if encoding.layout == NATIVE:
        return Encoder({path: NUMBERS}, held, pack, packing.BLOCK_ROWS)
    return Encoder({path: NUMBERS}, held, encode, block_rows=1)


def _of_quantized(
    path: str,
    encoding: Encoding,
    held: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, jax.ShapeDtypeStruct],
) -> Encoder:
    scheme, layout, outer, inner, _, source = encoding
    assert source is not None
    repeats = num_groups(scheme, inner) // num_groups(source.scheme, inner)

    def encode(parts: Arrays, into: Arrays) -> None:
        values, scales, zeros, order = unpack(source, parts)
        scales = np.repeat(scales, repeats, axis=1)
        zeros = None if zeros is None else np.repeat(zeros, repeats, axis=1)
        if order is not None:
            into[path + ORDER][:] = order
        if layout == NATIVE:
            packing.pack_values(values, scales, zeros, scheme, into[path + VALUES])
            return
        into[path + VALUES][:], into[path + SCALES][:] = values, scales
        if zeros is not None:
            into[path + ZEROS][:] = zeros

    names = {f"{path}.{part.name}": part.name for part in parts_of(source, outer, inner)}
    names = {stored_path: name for stored_path, name in names.items() if stored_path in stored}
    return Encoder(names, held, encode)
