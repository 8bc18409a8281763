"""Which requests can never be served?

Everything about a request that only the engine can judge is checked here, once, at the door, and
refused with numbers: what waiting could cure is never refused.  That the queue is full is another
matter, and said by `Scheduler.add`.  Read next: `scheduler.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rtp_jax.errors import InvalidArgument
from rtp_jax.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one engine can hold."""

    vocab_size: int  # ids that are tokens
    max_model_len: int  # tokens of prompt and output together
    num_pages: int  # the null page included
    page_size: int  # tokens

    @property
    def held_tokens(self) -> int:
        """Tokens that fit all pages; page 0 is the null page."""
        return (self.num_pages - 1) * self.page_size

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence: context or memory, whichever is smaller."""
        return min(self.max_model_len, self.held_tokens)


def resolve_max_tokens(num_prompt: int, max_tokens: int | None, limits: Limits) -> int:
    """Return `max_tokens`, or what context and memory leave if it is None; at least 1.

    A number that was asked for is never lowered: if it cannot fit, `check_request` says so.
    """
    return max(limits.max_tokens - num_prompt, 1) if max_tokens is None else max_tokens


def check_request(request: Request, limits: Limits) -> None:
    """Refuse a request that no amount of waiting would make schedulable."""
    _check_prompt(request, limits)
    _check_length(request, limits)
    _check_pages(request, limits)
    _check_option_ids(request, limits)


def _check_prompt(request: Request, limits: Limits) -> None:
    prompt = request.prompt_token_ids
    if not prompt:
        raise InvalidArgument(
            f"RTPJ-2001 PROMPT_EMPTY: request {request.id} has a prompt of 0 tokens. Give at least"
            " one token.",
            field="prompt",
        )
    if (bad := _outside(prompt, limits)) is not None:
        raise InvalidArgument(
            f"RTPJ-2002 PROMPT_ID_UNKNOWN: request {request.id} has the token id {bad} at position"
            f" {prompt.index(bad)} of its prompt, the vocabulary has {limits.vocab_size} ids. Use"
            f" ids in [0, {limits.vocab_size - 1}].",
            field="prompt_token_ids",
        )


def _check_length(request: Request, limits: Limits) -> None:
    prompt, longest = len(request.prompt_token_ids), limits.max_model_len
    if prompt + 1 > longest:
        raise InvalidArgument(
            f"RTPJ-2004 PROMPT_TOO_LONG: request {request.id} has a prompt of {prompt} tokens,"
            f" max_model_len={longest} leaves room for {longest - 1} and one output token. Shorten"
            f" it by {prompt + 1 - longest} tokens, or use truncate_prompt_tokens=-1.",
            field="prompt",
        )
    if prompt + request.max_tokens > longest:
        raise InvalidArgument(
            f"RTPJ-2005 MAX_TOKENS_TOO_LARGE: request {request.id} asks for"
            f" max_tokens={request.max_tokens} after a prompt of {prompt} tokens,"
            f" max_model_len={longest} leaves {longest - prompt}. Lower max_tokens to"
            f" <= {longest - prompt}, or leave it out (None) to use what is left.",
            field="max_tokens",
        )
    if request.params.min_tokens > request.max_tokens:
        raise InvalidArgument(
            f"RTPJ-2006 MIN_TOKENS_TOO_LARGE: request {request.id} asks for"
            f" min_tokens={request.params.min_tokens}, its prompt of {prompt} tokens leaves"
            f" {request.max_tokens}. Lower min_tokens to <= {request.max_tokens}.",
            field="min_tokens",
        )


def _check_pages(request: Request, limits: Limits) -> None:
    prompt, held = len(request.prompt_token_ids), limits.held_tokens
    needed = prompt + request.max_tokens
    if needed <= held:
        return
    if prompt < held:
        fix = f"Lower max_tokens to <= {held - prompt}"
    else:
        fix = f"Shorten the prompt to <= {held - 1} tokens"
    raise InvalidArgument(
        f"RTPJ-2101 REQUEST_TOO_LARGE: request {request.id} needs KV pages for {needed} tokens"
        f" ({prompt} prompt + max_tokens={request.max_tokens}), {held} fit ({limits.num_pages - 1}"
        f" pages of {limits.page_size}). {fix}, or raise kv_memory to fit"
        f" {-(-needed // limits.page_size)} pages.",
        field="max_tokens" if prompt < held else "prompt",
    )


def _check_option_ids(request: Request, limits: Limits) -> None:
    params = request.params
    options: dict[str, Iterable[int] | None] = {
        "stop_token_ids": params.stop_token_ids,
        "logprob_token_ids": params.logprob_token_ids,
        "logit_bias": params.logit_bias,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": [token_id for word in request.bad_word_ids for token_id in word],
    }
    for name, ids in options.items():
        if ids is not None and (bad := _outside(tuple(ids), limits)) is not None:
            raise InvalidArgument(
                f"RTPJ-2003 OPTION_ID_UNKNOWN: {name} of request {request.id} has the token id"
                f" {bad}, the vocabulary has {limits.vocab_size} ids. Use ids in"
                f" [0, {limits.vocab_size - 1}].",
                field=name,
            )


def _outside(ids: tuple[int, ...], limits: Limits) -> int | None:
    """Find an id that is no token."""
    if not ids:
        return None
    low, high = min(ids), max(ids)
    if low < 0:
        return low
    return high if high >= limits.vocab_size else None
