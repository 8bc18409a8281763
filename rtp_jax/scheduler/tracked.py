"""What does the scheduler know of a sequence, beyond what it shows to others?

`Sequence` is the part that plans carry; here is the rest.  Read next: `scheduler.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from rtp_jax.cache.fetch import Fetch
from rtp_jax.cache.page_identity import PageChain
from rtp_jax.constraints.token_masks import TokenMasks, masks_of, needs_host_history
from rtp_jax.request import Phase, Request, Sequence

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
    num_published: int = 0  # pages that were read for others, or are not wanted by them
    fetch: Fetch | None = None  # pages on their way to it, or that have just arrived
    num_fetches: int = 0  # of this admission

    @property
    def prefill_only(self) -> bool:
        """True if it ends, without a token, when its full pages are computed."""
        return self.max_output == 0


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
    group = Group(request, added_s, num_live=request.params.n - len(request.ended))
    level = request.priority + (added_s / ageing_s if ageing_s > 0 else 0.0)
    most = min(request.max_tokens, longest)  # output tokens that the context has room for
    if request.publication is not None:
        most = 0  # its pages are all that is wanted
    masks, lockstep = masks_of(request, vocab_size), needs_host_history(request)
    for index in range(request.params.n):
        sequence = _sequence(request, index)
        key = (level, next(numbers))
        tracked = Tracked(sequence, group, key, most, masks, lockstep)
        if request.publication is not None:
            tracked.num_published = request.publication.first_page
        group.members.append(tracked)
    return group


def _sequence(request: Request, index: int) -> Sequence:
    """Make a sequence; one that is resumed is as if it had been preempted."""
    sequence = Sequence(request, index, seed_of(request.seed, index))
    if request.resumed:
        sequence.output_ids = list(request.resumed[index])
        if sequence.output_ids:  # its prompt was computed, and reported, elsewhere
            sequence.num_prompt_logprobs = max(sequence.num_prompt - 1, 0)
    if any(end.index == index for end in request.ended):
        sequence.phase = Phase.FINISHED
    return sequence


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


def prefill_end(tracked: Tracked, page_size: int) -> int:
    """Count the tokens to prefill: all, or the full pages before the last one."""
    known = known_tokens(tracked.sequence)
    return (known - 1) // page_size * page_size if tracked.prefill_only else known
