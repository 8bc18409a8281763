"""How fast does each pair of head dimensions turn?  The variants of rotary embedding, without jax.

Every variant maps the plain frequencies `theta ** (-2i / head_dim)`, fastest first, to others, so
that a model sees longer contexts than it was trained on, and may scale what it turns by an
`attention_factor`.  Read next: `rope.py`, which turns queries and keys.

Sources: Su et al. 2021, RoFormer (arXiv:2104.09864), section 3.2.2; Chen et al. 2023, position
interpolation (arXiv:2306.15595); Peng et al. 2023, YaRN (arXiv:2309.00071), sections 3.2 to 3.4;
Llama 3.1's rule as in `transformers.modeling_rope_utils`, against which the goldens test all.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Unscaled:
    """Plain frequencies; also `dynamic`, up to the length from which it starts to scale."""

    attention_factor: float = 1.0

    def __call__(self, plain: np.ndarray, theta: float) -> np.ndarray:
        """Return them as they are."""
        return plain


@dataclass(frozen=True, slots=True)
class Linear:
    """Positions are squeezed: all frequencies divided by `factor`."""

    factor: float
    attention_factor: float = 1.0

    def __call__(self, plain: np.ndarray, theta: float) -> np.ndarray:
        """Divide all by the factor."""
        return plain / self.factor


@dataclass(frozen=True, slots=True)
class Llama3:
    """Slow turns are slowed further, fast ones kept, and between them a blend."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int
    attention_factor: float = 1.0

    def __call__(self, plain: np.ndarray, theta: float) -> np.ndarray:
        """Blend by how many turns a frequency makes within the original context."""
        turns = self.original_positions * plain / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((turns - self.low_freq_factor) / span, 0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


@dataclass(frozen=True, slots=True)
class Yarn:
    """Dimensions that turn often are kept, seldom ones interpolated, with a ramp between."""

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __call__(self, plain: np.ndarray, theta: float) -> np.ndarray:
        """Blend along a ramp over the dimensions."""
        size = 2 * plain.size
        low = self._dimension_that_turns(self.beta_fast, size, theta)
        high = self._dimension_that_turns(self.beta_slow, size, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        high += 0.001 if low == high else 0
        interpolated = np.clip((np.arange(plain.size) - low) / (high - low), 0, 1)
        return interpolated * plain / self.factor + (1 - interpolated) * plain

    def _dimension_that_turns(self, times: float, size: int, theta: float) -> float:
        """Find the pair that turns so often within the original context, as a fraction."""
        turns = self.original_positions / (times * 2 * math.pi)
        return size * math.log(turns) / (2 * math.log(theta))


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Return YaRN's factor on rotated vectors where the config does not state it."""

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return growth(mscale) / growth(mscale_all_dim)
    return growth(1.0)


Scaling = Unscaled | Linear | Llama3 | Yarn


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding: everything that decides how a position turns a head."""

    head_dim: int
    theta: float
    scaling: Scaling = Unscaled()

    def frequencies(self) -> np.ndarray:
        """Return radians per position for each pair of dimensions, float64 [head_dim / 2]."""
        plain = self.theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return self.scaling(plain, self.theta)
