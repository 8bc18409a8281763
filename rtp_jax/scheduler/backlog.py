"""How much work lies before a scheduler, in tokens?  What a router predicts waiting from."""

from collections.abc import Iterable
from dataclasses import dataclass

from rtp_jax.scheduler.tracked import Tracked, known_tokens


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of all live sequences."""

    prefill_tokens: int  # of waiting and running sequences, not computed yet
    num_decoding: int
    decode_tokens: int  # context of those that decode


def backlog_of(running: Iterable[Tracked], waiting: Iterable[Tracked]) -> Backlog:
    """Add up sequences; what is in the prefix cache of a waiting one is not looked up."""
    prefill = sum(known_tokens(tracked.sequence) for tracked in waiting)
    num_decoding = decode = 0
    for tracked in running:
        left = tracked.prefill_end - tracked.sequence.num_computed
        if left > 0:
            prefill += left
        else:
            num_decoding += 1
            decode += tracked.sequence.num_tokens
    return Backlog(prefill, num_decoding, decode)
