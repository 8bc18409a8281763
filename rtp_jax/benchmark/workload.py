"""What is asked of a server or an engine: prompts, output lengths, and when they arrive.

Everything follows from the seed.  Two draws of one workload have the same lengths and the same
arrivals but other token ids, so that the second finds nothing in a prefix cache but what the
workload itself shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rtp_jax.benchmark.lengths import Lengths
from rtp_jax.benchmark.trace import Trace

LENGTHS, IDS, ARRIVALS = range(3)  # each has its own stream of random numbers


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a workload."""

    prompt: tuple[int, ...] | str
    num_output_tokens: int
    at_s: float | None = None  # when it arrives, from the start; None: when one before it ended


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests to be made up, or taken from a trace."""

    num_requests: int
    prompt_tokens: Lengths
    output_tokens: Lengths
    shared_prefix: float = 0.0  # share of each prompt that is the same for all, in [0, 1]
    trace: Trace | None = None  # instead of the prompts above, and of the outputs it has
    seed: int = 0

    def requests(self, vocab_size: int, draw: int = 0) -> list[Planned]:
        """Make the requests; another `draw` has other token ids.

        Args:
          vocab_size: ids are drawn from all of them, evenly.
          draw: which draw, from 0.
        """
        lengths = np.random.default_rng((self.seed, LENGTHS))
        ids_seed = (self.seed, IDS, draw)
        if self.trace is None:
            prompts = self._prompts(lengths, vocab_size, ids_seed)
            given = [None] * len(prompts)
        else:
            prompts = list(self.trace.prompts(vocab_size, ids_seed))
            given = [line.num_output_tokens for line in self.trace.lines]
        drawn = self.output_tokens.draw(lengths, len(prompts))
        return [
            Planned(prompt, known or made)
            for prompt, known, made in zip(prompts, given, drawn, strict=True)
        ]

    def _prompts(
        self, lengths: np.random.Generator, vocab_size: int, seed: tuple[int, ...]
    ) -> list[tuple[int, ...]]:
        sizes = self.prompt_tokens.draw(lengths, self.num_requests)
        rng = np.random.default_rng(seed)
        prefix = rng.integers(0, vocab_size, max(sizes)).tolist()
        prompts = []
        for size in sizes:
            num_shared = round(size * self.shared_prefix)
            own = rng.integers(0, vocab_size, size - num_shared).tolist()
            prompts.append((*prefix[:num_shared], *own))
        return prompts


def poisson(requests: Sequence[Planned], rate: float, seed: int) -> list[Planned]:
    """Let requests arrive at random: `rate` a second on average, exponential gaps.

    The gaps of two rates are the same but for their scale, so that a sweep compares like with like.
    """
    gaps = np.random.default_rng((seed, ARRIVALS)).exponential(1 / rate, len(requests))
    arrivals = np.cumsum(gaps).tolist()
    return [replace(each, at_s=at_s) for each, at_s in zip(requests, arrivals, strict=True)]


def replayed(requests: Sequence[Planned], trace: Trace) -> list[Planned]:
    """Let requests arrive as in their trace, which is `timed`."""
    return [replace(each, at_s=line.at_s) for each, line in zip(requests, trace.lines, strict=True)]
