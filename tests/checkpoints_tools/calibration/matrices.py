"""Matrices and inputs for the tests of calibration, seeded."""

import ml_dtypes
import numpy as np

from checkpoints_tools.calibration.grid import Kind

KINDS = [
    Kind(32, True, np.dtype(np.float32)),
    Kind(32, False, np.dtype(np.float32)),
    Kind(64, True, np.dtype(ml_dtypes.bfloat16)),
    Kind(64, False, np.dtype(ml_dtypes.bfloat16)),
]


def matrix(outer: int, inner: int, seed: int = 0) -> np.ndarray:
    """Draw a matrix, float32 [outer, inner]."""
    return np.random.default_rng(seed).standard_normal((outer, inner)).astype(np.float32)


def inputs(tokens: int, inner: int, seed: int = 1) -> np.ndarray:
    """Draw inputs that depend on each other, some features of which are large: float32."""
    random = np.random.default_rng(seed)
    few = random.standard_normal((tokens, inner // 4)) @ random.standard_normal((inner // 4, inner))
    noise = random.standard_normal((tokens, inner))
    return ((few + 0.5 * noise) * np.exp(random.standard_normal(inner))).astype(np.float32)
