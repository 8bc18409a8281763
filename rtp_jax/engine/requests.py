"""From what a user passed to a checked, tokenized `Request`; runs in the caller's thread.

Prompts are a str, token ids, `{"prompt": str}` or `{"prompt_token_ids": [...]}` (with an optional
`cache_salt` and `reuse`), or a list of these.  Everything that can be wrong with them is said here,
at the call.  Read next: `scheduler/admission.py`.
"""

import hashlib
import itertools
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rtp_jax.delivery.delivery import request_wall, reraise
from rtp_jax.engine.resuming import resumed
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.request import EVERY_TIER, TIERS, Request, Reuse
from rtp_jax.sampling_params import SamplingParams, unknown_option
from rtp_jax.scheduler.admission import Limits, check_request, resolve_max_tokens
from rtp_jax.text.tokenizer import Tokenizer

MAX_CHARS_PER_TOKEN = 64  # longer prompts cannot fit, so they are refused before tokenizing
MAX_SALT_CHARS = 256
MAX_ID_CHARS = 256
PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "reuse")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: text, or token ids."""

    text: str | None
    token_ids: tuple[int, ...] | None
    cache_salt: str = ""
    reuse: Reuse = EVERY_TIER


def parse_prompts(prompts: object) -> tuple[list[Prompt], bool]:
    """Accept one prompt or a list of them; also say whether it was a list."""
    if isinstance(prompts, str | Mapping) or _are_ids(prompts):
        return [parse_prompt(prompts)], False
    if isinstance(prompts, Sequence) and not isinstance(prompts, bytes):
        return [parse_prompt(prompt) for prompt in prompts], True
    raise _bad_prompt(prompts)


def parse_prompt(prompt: object) -> Prompt:
    """Accept one prompt: str, token ids or a mapping."""
    if isinstance(prompt, str):
        return Prompt(prompt, None)
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return Prompt(None, _ids(prompt))
    if not isinstance(prompt, Mapping):
        raise _bad_prompt(prompt)
    for key, value in prompt.items():
        if key not in PROMPT_KEYS:
            raise unknown_option("a prompt", str(key), value, PROMPT_KEYS)
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if (text is None) == (ids is None):
        raise InvalidArgument(
            "RTPJ-1005 PROMPT_AMBIGUOUS: a prompt has exactly one of prompt and prompt_token_ids;"
            f" given: {', '.join(sorted(map(str, prompt))) or 'neither'}.",
            field="prompt",
        )
    if text is not None and not isinstance(text, str):
        raise _bad_prompt(text)
    salt, reuse = check_salt(prompt.get("cache_salt")), check_reuse(prompt.get("reuse"))
    return Prompt(text, None if ids is None else _ids(ids), salt, reuse)


def check_reuse(reuse: object) -> Reuse:
    """Accept None, a `Reuse`, or a mapping of tiers to whether they may be used."""
    if reuse is None or isinstance(reuse, Reuse):
        return reuse or EVERY_TIER
    if isinstance(reuse, Mapping) and all(
        tier in TIERS and isinstance(allowed, bool) for tier, allowed in reuse.items()
    ):
        return Reuse(**reuse)
    raise InvalidArgument(
        "RTPJ-1003 OPTION_INVALID: reuse must map KV tiers to True or False; the tiers are"
        f" {', '.join(TIERS)}. Given: {_shown(reuse)}.",
        field="reuse",
    )


def check_salt(salt: object) -> str:
    """Accept None or a short string."""
    if salt is None:
        return ""
    if not _is_text(salt, MAX_SALT_CHARS):
        raise InvalidArgument(
            f"RTPJ-1003 OPTION_INVALID: cache_salt must be a string of at most {MAX_SALT_CHARS}"
            f" characters, without lone surrogates, not {_shown(salt)}.",
            field="cache_salt",
        )
    return str(salt)


def match_params(params: object, num_prompts: int, default: SamplingParams) -> list[SamplingParams]:
    """Give each prompt its params: none, one for all, or a list as long as the prompts'."""
    if params is None:
        return [default] * num_prompts
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence) or isinstance(params, str | bytes):
        raise InvalidArgument(
            "RTPJ-1003 OPTION_INVALID: sampling_params must be a SamplingParams, a list of them or"
            f" None, not {_shown(params)}.",
            field="sampling_params",
        )
    if len(params) != num_prompts:
        raise InvalidArgument(
            f"RTPJ-1006 LENGTHS_DIFFER: {num_prompts} prompts and {len(params)} sampling_params."
            " Pass one for all, or one for each prompt.",
            field="sampling_params",
        )
    for value in params:
        match_params(value if value is not None else 0, 1, default)
    return list(params)


class RequestBuilder:
    """Makes requests for one model: knows its tokenizer, limits and end-of-sequence tokens."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        limits: Limits,
        eos_token_ids: frozenset[int],
        seed: int,
    ):
        self.limits = limits
        self.tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._numbers = itertools.count()
        self._prefix = secrets.token_hex(6)  # ids that nobody can guess, or take by accident

    def build(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        resume: Sequence[Sequence[int]] = (),
    ) -> Request:
        """Tokenize, resolve and check a request; a fault of ours in that is its own alone."""
        number, arrival_s = next(self._numbers), time.monotonic()
        name = f"{self._prefix}-{number}" if request_id is None else _checked_id(request_id)
        eos = self._eos_token_ids
        stops = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else eos)
        with request_wall(name, "tokenizer", reraise):
            ids = self._truncated(self._prompt_ids(prompt), params)
            self._check_text_options(params)
            request = Request(
                id=name,
                prompt_token_ids=ids,
                params=params,
                prompt=prompt.text,
                seed=self._resolve_seed(params.seed, number),
                stop_token_ids=stops,
                eos_token_ids=eos,
                bad_word_ids=self._bad_word_ids(params.bad_words or ()),
                max_tokens=resolve_max_tokens(len(ids), params.max_tokens, self.limits),
                priority=_checked_priority(priority),
                arrival_s=arrival_s,
                deadline_s=_checked_deadline(deadline_s),
                cache_salt=prompt.cache_salt,
                reuse_prefix=params.prompt_logprobs is None,
                reuse=prompt.reuse,
            )
            check_request(request, self.limits)
            if not resume:
                return request
            return resumed(request, resume, limits=self.limits, tokenizer=self.tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenize text, or say why this engine cannot."""
        if self.tokenizer is None:
            raise FailedPrecondition(
                "RTPJ-1007 NO_TOKENIZER: the prompt is text and this engine was started with"
                " skip_tokenizer_init=True. Pass prompt_token_ids, or start it with a tokenizer.",
                field="prompt",
            )
        longest = self.limits.max_model_len * MAX_CHARS_PER_TOKEN
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, max_chars=longest)

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        assert prompt.text is not None
        return tuple(self.encode(prompt.text))

    def _truncated(self, ids: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
        keep = params.truncate_prompt_tokens
        if keep is None:
            return ids
        return ids[-(self.limits.max_model_len - 1 if keep == -1 else keep) :]

    def _check_text_options(self, params: SamplingParams) -> None:
        if self.tokenizer is not None or not (params.stops or params.bad_words):
            return
        name = "stop" if params.stops else "bad_words"
        raise FailedPrecondition(
            f"RTPJ-1007 NO_TOKENIZER: {name} is text and this engine was started with"
            " skip_tokenizer_init=True. Use stop_token_ids, or start it with a tokenizer.",
            field=name,
        )

    def _bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Tokenize each word as it stands and after a space."""
        spellings = [spelling for word in words for spelling in (word, " " + word.lstrip())]
        ids = [tuple(self.encode(text, add_special_tokens=False)) for text in spellings]
        return tuple(dict.fromkeys(word for word in ids if word))

    def _resolve_seed(self, seed: int | None, number: int) -> int:
        """Fold a seed to 32 bits; without one, derive it from the engine's seed and a count."""
        if seed is not None and 0 <= seed < 2**32:
            return seed
        source = f"given {seed}" if seed is not None else f"engine {self._seed} request {number}"
        return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=4).digest(), "little")


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and isinstance(value[0], int)
    )


def _ids(values: object) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise _bad_prompt(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _bad_prompt(values)
    return tuple(values)


def _checked_id(request_id: object) -> str:
    if not request_id or not _is_text(request_id, MAX_ID_CHARS):
        raise InvalidArgument(
            f"RTPJ-1003 OPTION_INVALID: request_id must be a string of 1 to {MAX_ID_CHARS}"
            f" characters, without lone surrogates, not {_shown(request_id)}.",
            field="request_id",
        )
    return str(request_id)


def _is_text(value: object, most: int) -> bool:
    if not isinstance(value, str) or len(value) > most:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _checked_deadline(deadline_s: object) -> float | None:
    if deadline_s is None:
        return None
    if isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool):
        time_s = float(deadline_s)
    else:
        time_s = math.nan
    if math.isfinite(time_s):
        return time_s
    raise InvalidArgument(
        "RTPJ-1003 OPTION_INVALID: deadline_s must be a finite time on time.monotonic()'s clock"
        f" or None, not {_shown(deadline_s)}.",
        field="deadline_s",
    )


def _checked_priority(priority: object) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 2**31:
        raise InvalidArgument(
            f"RTPJ-1003 OPTION_INVALID: priority must be an integer, not {_shown(priority)}.",
            field="priority",
        )
    return priority


def _bad_prompt(prompt: object) -> InvalidArgument:
    return InvalidArgument(
        "RTPJ-1004 PROMPT_INVALID: a prompt is a str, a list of token ids (int),"
        " {'prompt': str} or {'prompt_token_ids': [...]}, or a list of these;"
        f" given {type(prompt).__name__}.",
        field="prompt",
    )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
