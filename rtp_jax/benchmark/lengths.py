"""How long are prompts and outputs?  A distribution, written in one word: `uniform:64:512`."""

import math
from dataclasses import dataclass

import numpy as np

from rtp_jax.benchmark.options import count, number, refused

FORMS = "N, uniform:LOW:HIGH, loguniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:MOST, in tokens"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution over numbers of tokens; at least 1, and both ends are included."""

    kind: str  # fixed, uniform, loguniform, lognormal
    low: int  # of lognormal: 1
    high: int
    median: float = 0.0  # of lognormal
    sigma: float = 0.0  # of lognormal: the standard deviation of the logarithm

    @classmethod
    def fixed(cls, tokens: int) -> "Lengths":
        """Always the same."""
        return cls("fixed", tokens, tokens)

    def draw(self, rng: np.random.Generator, size: int) -> list[int]:
        """Draw `size` lengths."""
        if self.kind == "uniform":
            return rng.integers(self.low, self.high + 1, size).tolist()
        if self.kind == "loguniform":  # each of the integers a rounded real would give
            drawn = np.exp(rng.uniform(math.log(self.low), math.log(self.high), size))
        elif self.kind == "lognormal":
            drawn = self.median * np.exp(self.sigma * rng.standard_normal(size))
        else:
            return [self.low] * size
        return np.clip(np.rint(drawn), self.low, self.high).astype(int).tolist()


def parse_lengths(flag: str, text: str) -> Lengths:
    """Read a distribution.

    Raises:
      InvalidArgument: it is none, or its ends are the wrong way round.
    """
    kind, *parts = text.split(":")
    if not parts:
        return Lengths.fixed(count(flag, kind))
    if kind in ("uniform", "loguniform") and len(parts) == 2:
        low, high = (count(f"{flag} {kind}", part) for part in parts)
        if low > high:
            raise refused(flag, text, f"{kind}:LOW:HIGH with LOW <= HIGH")
        return Lengths(kind, low, high)
    if kind == "lognormal" and len(parts) == 3:
        median, sigma = (number(f"{flag} {kind}", part) for part in parts[:2])
        return Lengths(kind, 1, count(f"{flag} {kind}", parts[2]), median, sigma)
    raise refused(flag, text, FORMS)
