"""Which tokens may a sequence produce next?

    allowed_token_ids            nothing else is produced; never yields
    bad words of one token       never produced
    min_tokens                   no eos and no stop token before so many output tokens
    bad words of many tokens     the last token is banned after an output that ends with the others

A ban that would leave no token at all is not applied; they are tried in this order, so the first
one wins.  Padding ids of the vocabulary are not our business: the runner masks them for everybody.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from rtp_jax.request import Request

Mask = np.ndarray  # uint32 [ceil(vocab / 32)]: bit i of word w allows id 32 w + i


class TokenMasks:
    """The masks of one request; what does not change from token to token is computed once."""

    def __init__(self, request: Request, vocab_size: int):
        params = request.params
        self._vocab_size = vocab_size
        self._min_tokens = params.min_tokens
        single = [word[0] for word in request.bad_word_ids if len(word) == 1]
        self._long_words = [(word[:-1], word[-1]) for word in request.bad_word_ids if len(word) > 1]
        allowed = full_mask(vocab_size)
        if params.allowed_token_ids is not None:
            allowed = mask_of(params.allowed_token_ids, vocab_size)
        self._later = without(allowed, single)  # once min_tokens is reached
        stops = request.stop_token_ids | request.eos_token_ids
        self._early = without(self._later, stops) if self._min_tokens else self._later
        self._always = params.allowed_token_ids is not None or bool(single)

    def next_mask(self, num_output: int, output_ids: Sequence[int]) -> Mask | None:
        """Return the mask of output token number `num_output` (from 0), or None: all allowed.

        `output_ids` are the tokens before it.  They are read only for bad words of several tokens,
        so other requests may leave out what the host does not know yet.
        """
        early = num_output < self._min_tokens
        mask = self._early if early else self._later
        banned = [last for head, last in self._long_words if _ends_with(output_ids, head)]
        if banned:
            return without(mask, banned)
        return mask if self._always or early else None


def masks_of(request: Request, vocab_size: int) -> TokenMasks | None:
    """Prepare the masks of a request, or None if it masks nothing, ever."""
    params = request.params
    if params.allowed_token_ids is None and not request.bad_word_ids and not params.min_tokens:
        return None
    return TokenMasks(request, vocab_size)


def needs_host_history(request: Request) -> bool:
    """Say whether masks depend on which tokens came before, not only on how many.

    Such a sequence runs in lockstep with the host: it is scheduled when nothing of it is in flight.
    """
    return any(len(word) > 1 for word in request.bad_word_ids)


def full_mask(vocab_size: int) -> Mask:
    """Allow every token; the bits beyond the vocabulary are 0."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[:vocab_size] = 1
    return np.packbits(bits, bitorder="little").view("<u4")


def mask_of(token_ids: Iterable[int], vocab_size: int) -> Mask:
    """Allow some tokens."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[np.fromiter(token_ids, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view("<u4")


def without(mask: Mask, token_ids: Iterable[int]) -> Mask:
    """Ban some tokens, unless that would leave none."""
    words = mask.copy()
    for token_id in token_ids:
        words[token_id >> 5] &= np.uint32(0xFFFFFFFF ^ (1 << (token_id & 31)))
    return words if words.any() else mask


def _ends_with(ids: Sequence[int], end: tuple[int, ...]) -> bool:
    return len(ids) >= len(end) and tuple(ids[-len(end) :]) == end
