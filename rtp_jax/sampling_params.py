"""How a request wants its tokens chosen: vLLM's names, defaults and meanings.

Everything is checked here, once, when the object is made; what only a model can judge (ids within
the vocabulary, lengths) is checked in `scheduler/admission.py`.  Read next: `request.py`.
"""

import dataclasses
import difflib
import enum
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtp_jax.errors import InvalidArgument, Unimplemented

MAX_N = 128
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_LOGPROB_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS, MAX_BAD_WORD_CHARS = 256, 256
GREEDY_BELOW = 1e-5  # temperatures below mean greedy
LOWEST_TEMPERATURE = 0.01  # temperatures between are raised to this

LATER = {
    "structured_outputs": "guided decoding",
    "guided_decoding": "guided decoding",
    "logits_processors": "logits processors",
    "thinking_token_budget": "a thinking budget",
    "repetition_detection": "repetition detection",
    "best_of": "best_of (use n and logprobs, and pick the best)",
    "extra_args": "extra_args",
}


class OutputKind(enum.StrEnum):
    """What each output of a stream holds."""

    CUMULATIVE = "cumulative"  # everything so far
    DELTA = "delta"  # what is new
    FINAL_ONLY = "final_only"  # one output, at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling options of one request; invalid values raise `InvalidArgument` by name.

    Order of application, on float32 logits: raw logprobs are taken; allowed_token_ids; bad_words;
    min_tokens; logit_bias; repetition, frequency and presence penalties; temperature; min_p; top_k;
    top_p.  At least one token always survives.  Greedy ties go to the lowest id.
    """

    n: int = 1  # completions for the prompt; the seed of completion i derives from (seed, i)
    temperature: float = 1.0  # in [0, 2]; below 1e-5 greedy; (1e-5, 0.01) is raised to 0.01
    top_p: float = 1.0  # in (0, 1]: smallest set whose probability reaches top_p
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0  # in [0, 1]: drop tokens below min_p times the largest probability
    presence_penalty: float = 0.0  # in [-2, 2], of output tokens
    frequency_penalty: float = 0.0  # in [-2, 2], of output tokens
    repetition_penalty: float = 1.0  # in [0.001, 1000], of prompt and output tokens
    seed: int | None = None  # None or -1: the engine picks one
    stop: str | Sequence[str] | None = None  # text is cut before the first match
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    max_tokens: int | None = 16  # None: until the context is full
    min_tokens: int = 0  # until then no eos, stop token or stop string ends the output
    logprobs: int | None = None  # most likely tokens to report beside the sampled one
    prompt_logprobs: int | None = None  # the same for the prompt; bypasses prefix-cache reads
    logprob_token_ids: Sequence[int] | None = None  # report these tokens' logprobs at each step
    logit_bias: Mapping[int, float] | None = None  # token id to a number in [-100, 100]
    bad_words: Sequence[str] | None = None  # never produced, with or without a leading space
    allowed_token_ids: Sequence[int] | None = None  # nothing else is produced
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # keep the last so many; -1: what fits the model
    output_kind: OutputKind = OutputKind.CUMULATIVE

    def __new__(cls, **options: object) -> "SamplingParams":
        """Refuse unknown options by name, before the dataclass would by a TypeError."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in options.items():
            if name in LATER:
                raise Unimplemented(
                    f"RTPJ-1002 OPTION_UNSUPPORTED: {name}={value!r}: {LATER[name]} is not"
                    " supported yet. Remove the option.",
                    field=name,
                )
            if name not in names:
                raise unknown_option("SamplingParams", name, value, names)
        return object.__new__(cls)

    def __post_init__(self):
        self._check_numbers()
        self._check_lists()
        self._check_combinations()

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def penalised(self) -> bool:
        """True if logits depend on the tokens that came before."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)

    def _check_numbers(self) -> None:
        _check_int("n", self.n, 1, MAX_N)
        _check_float("temperature", self.temperature, 0.0, 2.0)
        if GREEDY_BELOW <= self.temperature < LOWEST_TEMPERATURE:
            object.__setattr__(self, "temperature", LOWEST_TEMPERATURE)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_int("top_k", self.top_k, -1, None)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        _check_int("seed", self.seed, -(2**63), 2**64 - 1, optional=True)
        _check_int("max_tokens", self.max_tokens, 1, None, optional=True)
        _check_int("min_tokens", self.min_tokens, 0, None)
        _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True)
        _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS, optional=True)
        _check_int("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, None, optional=True)
        for name in _BOOLS:
            if not isinstance(value := _value(self, name), bool):
                raise _bad(name, value, "True or False")
        kind = self.output_kind
        if kind not in tuple(OutputKind):
            raise _bad("output_kind", kind, "one of cumulative, delta, final_only")
        object.__setattr__(self, "output_kind", OutputKind(kind))

    def _check_lists(self) -> None:
        if self.stop is not None:
            stop = (self.stop,) if isinstance(self.stop, str) else self.stop
            _check_strings("stop", stop, MAX_STOPS, MAX_STOP_CHARS)
        if self.bad_words is not None:
            _check_strings("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _check_ids("logprob_token_ids", self.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS)
        _check_ids("allowed_token_ids", self.allowed_token_ids, None)
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            raise _bad("allowed_token_ids", [], "None or at least one token id")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise _bad("logit_bias", self.logit_bias, "a mapping from token id to number")
            _check_ids("logit_bias", list(self.logit_bias), MAX_LOGIT_BIAS)
            for token_id, bias in self.logit_bias.items():
                _check_float(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
            plain = {int(token_id): float(bias) for token_id, bias in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", plain)
        for name in _LISTS:  # copies: what was checked cannot change afterwards
            if (values := _value(self, name)) is not None and not isinstance(values, str):
                object.__setattr__(self, name, tuple(values))

    def _check_combinations(self) -> None:
        if self.n > 1 and self.greedy:
            raise _bad("n", self.n, f"1 when temperature={self.temperature} (greedy)")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _bad("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        if self.stops and not self.detokenize:
            raise _bad("stop", self.stop, "empty when detokenize=False")
        if self.truncate_prompt_tokens == 0:
            raise _bad("truncate_prompt_tokens", 0, "None, -1 or at least 1")


_LISTS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids", "logprob_token_ids")
_BOOLS = (
    "ignore_eos",
    "include_stop_str_in_output",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


def unknown_option(owner: str, name: str, value: object, names: Sequence[str]) -> InvalidArgument:
    """Build the error for an option that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(names))}."
    return InvalidArgument(
        f"RTPJ-1001 OPTION_UNKNOWN: {owner} has no option {name} (given {value!r}). {hint}",
        field=name,
    )


def _bad(name: str, value: object, allowed: str) -> InvalidArgument:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return InvalidArgument(
        f"RTPJ-1003 OPTION_INVALID: {name}={shown} is not allowed; it must be {allowed}.",
        field=name,
    )


def _value(params: SamplingParams, name: str) -> Any:
    return object.__getattribute__(params, name)


def _check_int(
    name: str, value: object, low: int, high: int | None, *, optional: bool = False
) -> None:
    if optional and value is None:
        return
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if optional:
        allowed += " or None"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _bad(name, value, allowed)
    if int(value) < low or (high is not None and int(value) > high):
        raise _bad(name, value, allowed)


def _check_float(
    name: str, value: object, low: float, high: float, *, open_low: bool = False
) -> None:
    allowed = f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _bad(name, value, allowed)
    number = float(value)
    if not low <= number <= high or not math.isfinite(number) or (open_low and number == low):
        raise _bad(name, value, allowed)


def _check_strings(name: str, values: object, most: int, chars: int) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise _bad(name, values, "a list of strings")
    if len(values) > most:
        raise _bad(name, f"{len(values)} strings", f"at most {most} strings")
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= chars:
            raise _bad(name, value, f"strings of 1 to {chars} characters")


def _check_ids(name: str, values: object, most: int | None) -> None:
    if values is None:
        return
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise _bad(name, values, "a list of token ids")
    if most is not None and len(values) > most:
        raise _bad(name, f"{len(values)} ids", f"at most {most} ids")
    for value in values:
        _check_int(f"a token id in {name}", value, 0, 2**31 - 1)
