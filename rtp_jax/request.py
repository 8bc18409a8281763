"""What travels between the stations: requests, sequences, plans and tokens, as plain data.

    Request -> Sequence -> StepPlan -> StepResult -> TokenOutput

Read next: `scheduler/scheduler.py`, which makes plans, and `runner/batch.py`, which executes them.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from rtp_jax.errors import RtpError
from rtp_jax.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Publication:
    """Where the full pages of a prompt go; a request that has one ends without a token.

    The sink is called with the number of a page and its `PageRecord`, or None if it was lost; on
    the thread that waits for copies, which it must not hold up.  The last pages may come after the
    end of the request.  The page of the last token is not among them.
    """

    first_page: int  # pages before it are not wanted
    sink: Callable[[int, Any], None]
    last_chunk: int = 0  # tokens of the last of several steps; 0: as many as fit


@dataclass(frozen=True, slots=True)
class Reuse:
    """KV tiers that a request may read, and that its own pages may be written to."""

    device: bool = True  # False: its pages are not kept when it ends, so no tier gets them
    host: bool = True
    disk: bool = True
    remote: bool = True

    def allows(self, tier: str) -> bool:
        """Say whether a tier may be used; a peer always may, since the request names it."""
        chosen = {"device": self.device, "host": self.host}
        return (chosen | {"disk": self.disk, "remote": self.remote}).get(tier, True)


TIERS = tuple(tier.name for tier in fields(Reuse))
EVERY_TIER = Reuse()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asked, tokenized; it never changes."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    prompt: str | None = None  # the text, if it came as text
    seed: int = 0  # of completion 0; 32 bits, never None
    stop_token_ids: frozenset[int] = frozenset()  # of the params and, unless ignored, every eos
    eos_token_ids: frozenset[int] = frozenset()  # hidden from text and reported without stop_reason
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # bad_words as token ids
    max_tokens: int = 16  # resolved: params.max_tokens, or what the context leaves
    priority: int = 0  # lower goes first
    arrival_s: float = 0.0  # time.monotonic()
    deadline_s: float | None = None  # time.monotonic(); absolute
    cache_salt: str = ""  # part of the identity of its pages
    reuse_prefix: bool = True  # False: compute all of the prompt (prompt_logprobs needs it)
    reuse: Reuse = EVERY_TIER
    prefill_at: tuple[str, ...] = ()  # workers that may compute pages of the prompt, best first
    publication: Publication | None = None  # not None: compute pages for others, sample nothing
    resumed: tuple[tuple[int, ...], ...] = ()  # output that each completion has; (): none has any
    ended: tuple["Ended", ...] = ()  # completions whose output was whole already


class Phase(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # new or preempted: holds no pages
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an eos, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # cancelled, or the deadline passed
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a completion that is resumed had ended before."""

    index: int
    reason: FinishReason
    stop_reason: int | str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's state for one continuation of a request; the scheduler owns it.

    positions   0 ........ num_computed ........ num_tokens
                | KV written or enqueued | to be computed |

    A running sequence runs one step ahead of the host: `num_in_flight` tokens (0 or 1) are sampled
    on the device but not yet committed, so `num_tokens` counts them and `output_ids` does not.
    """

    request: Request
    index: int  # which of the request's n completions
    seed: int
    output_ids: list[int] = field(default_factory=list)
    phase: Phase = Phase.WAITING
    slot: int = -1  # row of the device state while running
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_in_flight: int = 0
    num_cached: int = 0  # prompt tokens found in the prefix cache at first admission
    cached_tokens: dict[str, int] = field(default_factory=dict)  # the same by tier, without zeros
    num_preemptions: int = 0
    num_prompt_logprobs: int = 0  # prompt positions already reported
    admitted_s: float | None = None
    first_token_s: float | None = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt, committed output, and tokens still in flight."""
        return self.num_prompt + len(self.output_ids) + self.num_in_flight

    def known_ids(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start..stop that the host knows (prompt and committed output)."""
        prompt = self.request.prompt_token_ids
        ids = list(prompt[start:stop])
        if stop > len(prompt):
            ids += self.output_ids[max(start - len(prompt), 0) : stop - len(prompt)]
        return ids


@dataclass(frozen=True, slots=True)
class StepRow:
    """One sequence's part of a step: `count` tokens from position `start` on."""

    sequence: Sequence
    slot: int
    start: int
    count: int
    token_ids: list[int] | None  # None: one token, which the device sampled in the step before
    pages: list[int]  # all pages of the sequence, those of this step's tokens included
    first_new_page: int  # pages[first_new_page:] are unknown to the runner; 0 on (re-)admission
    num_logit_rows: int  # 0: mid-prompt; 1: sample after the last token; count: prompt logprobs too
    samples: bool  # whether the last logit row yields the sequence's next token
    mask: np.ndarray | None = None  # uint32 [ceil(vocab / 32)]: bit i of word w allows id 32 w + i

    @property
    def admits(self) -> bool:
        """True if the runner must set up the slot: options, and history where they need it."""
        return self.first_new_page == 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The scheduler's decision for one step.  Logit rows lie in the order of `rows`."""

    number: int  # counts up from 0
    rows: tuple[StepRow, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.count for row in self.rows)

    @property
    def num_logit_rows(self) -> int:
        """Logit rows of all rows."""
        return sum(row.num_logit_rows for row in self.rows)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host; one entry for each logit row, in the plan's order.

    A logit row before a prompt token reports that token (prompt logprobs), any other the sampled
    one.  The logprob arrays are None in a step where no row asked for logprobs.
    """

    token_ids: np.ndarray  # int32 [rows]
    logprobs: np.ndarray | None = None  # float32 [rows]: of the reported token, raw
    ranks: np.ndarray | None = None  # int32 [rows]: 1 = most likely
    top_ids: np.ndarray | None = None  # int32 [rows, MAX_LOGPROBS], most likely first
    top_logprobs: np.ndarray | None = None  # float32 [rows, MAX_LOGPROBS]
    chosen_logprobs: np.ndarray | None = None  # float32 [rows, MAX_LOGPROB_TOKEN_IDS]
    failed_rows: frozenset[int] = frozenset()  # logit rows whose logits are NaN


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Raw logprobs at one position: of the token itself and of those that were asked for."""

    token_id: int
    logprob: float
    rank: int
    others: tuple[tuple[int, float, int | None], ...] = ()  # id, logprob, rank (None: not known)


@dataclass(slots=True)
class TokenOutput:
    """What a commit hands to delivery for one sequence: new tokens, or its end, or both."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt positions, in order, from 1 on
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id or string; None for eos and others
    error: RtpError | None = None
    num_cached_tokens: int = 0
    cached_tokens: dict[str, int] = field(default_factory=dict)  # by tier
    num_preemptions: int = 0
    admitted_s: float | None = None
    request: Request | None = None  # whose output it is, because an id may be used again
