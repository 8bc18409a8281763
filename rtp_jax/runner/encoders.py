"""How each matrix of a model gets from the numbers of a checkpoint to what the model holds.

Read next: `layers/matrix.py` for what may be held, `weights/loader.py` for who calls this.
"""

from collections.abc import Mapping

import numpy as np

from rtp_jax.kernels.native import packing
from rtp_jax.layers.encoding import SCALES, VALUES, Encoding
from rtp_jax.models.structure import Skeleton
from rtp_jax.quant.quantized_array import NATIVE
from rtp_jax.quant.schemes import quantize
from rtp_jax.weights.encoder import Encoder

Arrays = Mapping[str, np.ndarray]
NUMBERS = ""  # the only part of a matrix that is stored as plain numbers


def encoders(bones: Skeleton) -> dict[str, Encoder]:
    """Give an encoder to every matrix that is not held as it is stored."""
    return {
        path: _encoder(path, encoding, bones)
        for path, encoding in bones.encodings.items()
        if encoding.layout == NATIVE or encoding.scheme.is_quantized
    }


def _encoder(path: str, encoding: Encoding, bones: Skeleton) -> Encoder:
    names = [path + VALUES, path + SCALES]
    held = {name: bones.held[name] for name in names if name in bones.held}

    def pack(parts: Arrays, into: Arrays) -> None:
        packing.pack_rows(parts[NUMBERS], encoding.scheme, into[path + VALUES])

    def encode(parts: Arrays, into: Arrays) -> None:
        into[path + VALUES][:], into[path + SCALES][:] = quantize(parts[NUMBERS], encoding.scheme)

    if encoding.layout == NATIVE:
        return Encoder({path: NUMBERS}, held, pack, packing.BLOCK_ROWS)
    return Encoder({path: NUMBERS}, held, encode, block_rows=1)
