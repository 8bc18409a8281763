"""What does the scheduler know of a sequence, beyond what it shows to others?

`Sequence` is the part that plans carry; here is the rest.  Read next: `scheduler.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from rtp_jax.cache.page_identity import PageChain
from rtp_jax.constraints.token_masks import TokenMasks, masks_of, needs_host_history
from rtp_jax.request import Request, Sequence

# Who comes first: a level (priority, lowered by waiting), then the order of arrival.  A key never
# changes: two sequences age at the same pace, so their order is that of `priority + added / ageing`
# for ever.  Waiting, running and preemption all go by it.
Key = tuple[float, int]


@dataclass(slots=True, eq=False)
class Group:
    """The sequences of one request."""

    request: Request
    added_s: float
    members: list["Tracked"] = field(default_factory=list)
    num_live: int = 0
    started: bool = False  # one of them has been admitted
    prompt_chain: PageChain | None = None  # hashed once for all of them


@dataclass(slots=True, eq=False)
class Tracked:
    """One live sequence."""

    sequence: Sequence
    group: Group
    key: Key
    max_output: int
    masks: TokenMasks | None
    lockstep: bool  # scheduled only when nothing of it is in flight
    steps_in_flight: int = 0  # uncommitted plans with a row of it
    prefill_end: int = 0  # tokens that were known when it was admitted; decoding from there on
    num_sent_pages: int = 0  # pages that the runner knows
    chain: PageChain | None = None
    num_indexed: int = 0  # pages that were matched or handed to the prefix index
    indexing: bool = False  # whether its next page may be indexed
    next_page_end: int = 0  # tokens that fill the next page to be indexed
    waits_for: bytes | None = None  # page that another one is about to fill


def group_of(
    request: Request,
    *,
    added_s: float,
    numbers: Iterator[int],
    ageing_s: float,
    vocab_size: int,
    longest: int,
) -> Group:
    """Make the sequences of a request."""
    group = Group(request, added_s, num_live=request.params.n)
    level = request.priority + (added_s / ageing_s if ageing_s > 0 else 0.0)
    most = min(request.max_tokens, longest)  # output tokens that the context has room for
    masks, lockstep = masks_of(request, vocab_size), needs_host_history(request)
    for index in range(request.params.n):
        sequence = Sequence(request, index, seed_of(request.seed, index))
        key = (level, next(numbers))
        group.members.append(Tracked(sequence, group, key, most, masks, lockstep))
    return group


def seed_of(seed: int, index: int) -> int:
    """Derive the seed of completion `index`; completion 0 has the request's own."""
    if index == 0:
        return seed
    digest = blake2b(f"{seed} {index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def in_order(tracked: Tracked) -> Key:
    """Return what sequences are sorted by."""
    return tracked.key


def known_tokens(sequence: Sequence) -> int:
    """Count the tokens that the host knows."""
    return len(sequence.request.prompt_token_ids) + len(sequence.output_ids)
