"""What a user gets back: vLLM's names, plus timing and error.

Read next: `delivery.py`, which builds these from the tokens of each step.
"""

from dataclasses import dataclass, field

from rtp_jax.errors import RtpError


@dataclass(frozen=True, slots=True)
class Logprob:
    """A raw log-probability of the model: before bias, penalties, temperature and masks."""

    logprob: float  # nats
    rank: int | None  # 1 = most likely; None: not computed (ids asked for by logprob_token_ids)
    decoded_token: str | None


@dataclass(slots=True)
class CompletionOutput:
    """One continuation of a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None  # one dict for each token
    finish_reason: str | None = None  # stop, length, abort, error; None while running
    stop_reason: int | str | None = None  # the stop token id or stop string that ended it

    def finished(self) -> bool:
        """Tell whether this continuation has ended."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happened to a request: seconds since it arrived; None: not yet, or never."""

    queue_s: float | None = None  # waiting for its first step
    first_token_s: float | None = None  # TTFT
    total_s: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its continuations, so far or in the end."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # first position: None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    # The same by the tier that held them: device, host, disk, remote, peer; without zeros.
    cached_tokens: dict[str, int] = field(default_factory=dict)
    num_preemptions: int = 0
    timing: Timing = field(default_factory=Timing)
    error: RtpError | None = None


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """Log-probabilities of one given continuation of a prompt."""

    request_id: str
    token_ids: list[int]  # of the continuation
    logprobs: list[float]  # nats, one for each token
    is_greedy: bool  # True if each token was the most likely one
    num_prompt_tokens: int

    @property
    def total_logprob(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.logprobs)
