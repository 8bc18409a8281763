"""What the router is told about workers and requests, and what it answers: plain data.

Facts, loads and page events mean what they mean in `wire/router.proto`; whoever reads the wire
makes these of them.  Times are seconds of one clock, whichever the caller uses throughout.
Read next: `router.py`.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rtp_jax.errors import RtpError


class Role(enum.StrEnum):
    """What a worker is for."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class Tier(enum.IntEnum):
    """Where a worker holds a page; the faster first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class EventKind(enum.IntEnum):
    """What happened to a page."""

    INSERTED = 1
    EVICTED = 2
    CLEARED = 3  # every page of the tier; the key is empty


class PageEvent(NamedTuple):
    """One page came to a tier of a worker, or left it."""

    kind: EventKind
    tier: Tier
    key: bytes  # page identity, 16 bytes


@dataclass(frozen=True, slots=True)
class PageEvents:
    """Some events of one worker, in order."""

    first_event: int  # number of events[0]; a whole snapshot counts as one event
    events: Sequence[PageEvent]
    snapshot: bool = False  # forget what was known: these are all insertions there are
    more: bool = False  # the snapshot goes on in the next ones, which have the same number


@dataclass(frozen=True, slots=True)
class PageHashing:
    """What page identities depend on beside the prompt; equal ones make equal identities."""

    page_key: bytes
    model_epoch: str
    kv_scheme: str
    page_size: int  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """Who a worker is; nothing here changes while it lives, but for its role."""

    id: str
    address: str
    epoch: str  # one life of its engine
    role: Role
    hashing: PageHashing
    num_pages: int  # on the device, the null page not counted
    max_num_seqs: int
    max_num_batched_tokens: int  # of one step
    max_model_len: int
    model: str = ""
    layout: bytes = b""  # fingerprint; pages travel between equal ones
    kv_address: str = ""  # where it offers pages; empty: nowhere
    prefix_caching: bool = True
    version: str = ""


class StepSample(NamedTuple):
    """One step as a worker measured it."""

    prefill_tokens: int
    num_decoding: int
    context_tokens: int  # of all sequences in the step
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """How busy a worker was when it said so."""

    num_running: int
    num_waiting: int
    num_free_pages: int  # hold nothing
    num_cached_pages: int  # remembered, free on demand
    prefill_tokens: int  # of waiting and running sequences, not computed yet
    decode_tokens: int  # context of sequences that decode
    num_decoding: int
    draining: bool = False
    steps: Sequence[StepSample] = ()  # since the load before


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that wants a worker.

    One that goes on elsewhere after its worker died asks again under its id, with the tokens it
    has sent as part of the prompt and the dead worker in `avoid`.
    """

    request_id: str
    num_tokens: int  # prompt, and output that is computed again
    keys: Mapping[PageHashing, Sequence[bytes]]  # identities of its full pages, in order
    max_tokens: int  # still to be generated at most, of all completions
    priority: int = 0  # lower goes first
    tenant: str = ""
    session: str = ""
    arrival_s: float
    deadline_s: float | None = None  # absolute
    avoid: frozenset[str] = field(default_factory=frozenset)  # ids of workers that failed it


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes."""

    request_id: str
    worker: str  # id of the one that decodes and streams
    prefill: tuple[str, ...]  # ids of those that may prefill for it, best first; (): itself
    ttft_s: float  # predicted, from now
    reused_tokens: int  # expected


@dataclass(frozen=True, slots=True)
class Wait:
    """A request waits in the router; `Router.poll` will name it."""

    request_id: str
    num_ahead: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is not served, and why; the error says when to try again if that helps."""

    request_id: str
    error: RtpError

    @property
    def retry_after_s(self) -> float | None:
        """How long to wait before the same request may succeed."""
        return self.error.retry_after_s


Answer = Choice | Wait | Refusal
