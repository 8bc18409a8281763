"""The weights of golden models: drawn anew from a seed and a tensor's name, so none are stored.

The script that asks `transformers` for goldens and the test that compares with them draw the same
numbers, from the raw bits of PCG64, which NumPy promises never to change.
"""

import math
import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a tensor of a checkpoint in float32, at a scale that keeps every layer at work."""
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24)  # in [0, 1), exact
    spread = ((2 * uniform - 1) * np.float32(math.sqrt(3))).reshape(shape)  # deviation 1
    if "norm" in name:
        return 1 + np.float32(0.3) * spread
    if name.endswith("bias"):
        return np.float32(0.5) * spread
    gain = 4.0 if "embed_tokens" in name or "lm_head" in name else 1.5
    return np.float32(gain / math.sqrt(shape[-1])) * spread


def prompt(length: int, vocab_size: int, seed: int) -> np.ndarray:
    """Draw the token ids of a prompt."""
    bits = np.random.PCG64([seed, 1]).random_raw(length)
    return (bits % np.uint64(vocab_size)).astype(np.int32)
