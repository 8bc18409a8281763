"""How are sequences given to a layer?  As steps of one shape, several sequences end to end.

Every layer sees the same steps, so each of its programs is compiled once.

Read next: `layer_run.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.pages import StepInputs

PAGE_SIZE = 16  # tokens
MAX_SEQUENCES = 16  # of a step


class Step(NamedTuple):
    """Some sequences, padded to a fixed number of tokens."""

    ids: np.ndarray  # [tokens] int32; 0 in the padding
    inputs: StepInputs

    @property
    def num_tokens(self) -> int:
        """Tokens before the padding."""
        return int(self.inputs.num_tokens)


def num_pages(tokens: int) -> int:
    """Count the pages of a step, page 0 included: each sequence may leave one partly empty."""
    return 1 + tokens // PAGE_SIZE + MAX_SEQUENCES


def steps_of(sequences: Sequence[Sequence[int]], tokens: int) -> list[Step]:
    """Fill steps of so many tokens with sequences, none of which is longer."""
    steps, waiting = [], []
    for ids in sequences:
        if len(waiting) == MAX_SEQUENCES or sum(map(len, waiting)) + len(ids) > tokens:
            steps.append(_step(waiting, tokens))
            waiting = []
        waiting.append(ids)
    return [*steps, _step(waiting, tokens)]


def _step(sequences: Sequence[Sequence[int]], tokens: int) -> Step:
    positions, sequence_of, ids = np.zeros((3, tokens), np.int32)
    table = np.zeros((MAX_SEQUENCES, -(-tokens // PAGE_SIZE)), np.int32)
    start, count = np.zeros((2, MAX_SEQUENCES), np.int32)
    filled, page = 0, 1
    for number, sequence in enumerate(sequences):
        here = slice(filled, filled + len(sequence))
        ids[here], sequence_of[here] = sequence, number
        positions[here] = np.arange(len(sequence))
        start[number], count[number] = filled, len(sequence)
        used = -(-len(sequence) // PAGE_SIZE)
        table[number, :used] = page + np.arange(used)
        filled, page = here.stop, page + used
    arrays = positions[None], sequence_of, np.int32(filled), table, start, count
    return Step(ids, StepInputs(*map(jnp.asarray, arrays)))
