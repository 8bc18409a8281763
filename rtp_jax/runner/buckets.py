"""Which shapes steps are compiled for.

A compiled step is named by two numbers: tokens and sequences.  Everything else has its maximal
size.  Logit rows share the number of sequences: a step samples at most once per sequence, and what
prompt logprobs need comes out of the same rows.  Read next: `batch.py`, which pads to a bucket.
"""

import math
from typing import NamedTuple

from rtp_jax.errors import Internal

SMALLEST = 8  # one-row products leave the fast path of XLA on CPUs


class Bucket(NamedTuple):
    """The padded size of a step."""

    tokens: int
    sequences: int  # and logit rows

    def __str__(self) -> str:
        return f"{self.tokens}x{self.sequences}"


def lattice(max_tokens: int, max_sequences: int, *, deterministic: bool) -> tuple[Bucket, ...]:
    """List the buckets of an engine, cheapest first; at most 8.

    Decode-only steps have one token per sequence: 8, 16, 24, 40 or 64 of 64 sequences.  Steps with
    prefill come with few sequences or with all, and with few tokens or with all.  With
    `deterministic` there is one bucket, so that a token's arithmetic never depends on how many
    others share its step.
    """
    tokens, sequences = _padded(max_tokens), _padded(max_sequences)
    if deterministic:
        return (Bucket(max(tokens, sequences), sequences),)
    decode = [Bucket(rows, rows) for rows in _ladder(sequences)]
    mixed = [
        Bucket(max(size, rows), rows)
        for rows in {SMALLEST, sequences}
        for size in {_padded(min(max(tokens // 8, 64), tokens)), tokens}
    ]
    return tuple(sorted({*decode, *mixed}, key=lambda bucket: (bucket.tokens, bucket.sequences)))


def smallest(buckets: tuple[Bucket, ...], tokens: int, sequences: int) -> Bucket:
    """Pick the cheapest bucket that holds a step."""
    for bucket in buckets:
        if bucket.tokens >= tokens and bucket.sequences >= sequences:
            return bucket
    raise Internal(
        f"RTPJ-4105 NO_BUCKET: a step of {tokens} tokens and {sequences} logit rows fits none of"
        f" {', '.join(map(str, buckets))}. Please report this."
    )


def _padded(size: int) -> int:
    return -(-size // SMALLEST) * SMALLEST


def _ladder(largest: int) -> list[int]:
    """Five sizes from 8 to `largest`, each as many times the one before; fewer if they meet."""
    steps = (SMALLEST * (largest / SMALLEST) ** (power / 4) for power in range(4))
    return sorted({*(min(_padded(math.floor(size)), largest) for size in steps), largest})
