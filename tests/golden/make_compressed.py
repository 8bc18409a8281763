"""Writes `compressed_tensors.npz`: matrices that the layout's own library has quantized.

    python3.11 -m venv venv && venv/bin/pip install torch==2.13.0 compressed-tensors==0.17.0
    venv/bin/python tests/golden/make_compressed.py

The tests compare `rtp-jax-ckpt quantize` with it bit by bit.
"""

from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams

SCHEMES = {
    "int8": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "int8_dynamic": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "int4": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    ),
    "int4_zeros": (
        "pack-quantized",
        {
            "num_bits": 4,
            "type": "int",
            "strategy": "group",
            "group_size": 128,
            "symmetric": False,
        },
    ),
    "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
}
ROWS, COLUMNS = 6, 256


def matrix() -> torch.Tensor:
    """Draw numbers of many sizes, with a row of zeros and a group of zeros."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal((ROWS, COLUMNS)) * 10.0 ** random.integers(-3, 3, (ROWS, 1))
    numbers[2] = 0
    numbers[4, 128:] = 0
    return torch.tensor(numbers.astype(np.float32))


def main() -> None:
    """Quantize one matrix in each scheme."""
    weight, arrays = matrix(), {"weight": matrix().numpy()}
    for name, (layout, fields) in SCHEMES.items():
        weights = QuantizationArgs(dynamic=False, **{"symmetric": True, **fields})
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        groups = weight.reshape(ROWS, -1, weights.group_size or COLUMNS)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(layout)
        for part, value in compressor.compress(state, scheme).items():
            bits = value.view(torch.uint8) if value.dtype == torch.float8_e4m3fn else value
            arrays[f"{name}.{part}"] = bits.numpy()
    np.savez_compressed(Path(__file__).parent / "compressed_tensors.npz", **arrays)


if __name__ == "__main__":
    main()
