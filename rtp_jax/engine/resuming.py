"""Can a request go on behind this output, and which of its completions had ended with it?

A request that lost its worker is sent again with the tokens that its client has.  How a completion
ended is not sent along: it follows from the tokens.  Output that could not have come from the
request, because something follows its end, is refused.
"""

from collections.abc import Sequence
from dataclasses import replace

from rtp_jax.engine.assemblers import new_assembler
from rtp_jax.errors import InvalidArgument
from rtp_jax.request import Ended, FinishReason, Request
from rtp_jax.scheduler.admission import Limits
from rtp_jax.text.tokenizer import Tokenizer


def resumed(
    request: Request,
    output: Sequence[Sequence[int]],
    *,
    limits: Limits,
    tokenizer: Tokenizer | None,
) -> Request:
    """Give a request the output that each of its completions has already.

    Raises:
      InvalidArgument: this request cannot have had that output.
    """
    if len(output) != request.params.n:
        raise _impossible(request, f"{len(output)} outputs were given, n={request.params.n}")
    request = replace(request, resumed=tuple(map(tuple, output)))
    ends = [_end(request, index, limits, tokenizer) for index in range(request.params.n)]
    return replace(request, ended=tuple(end for end in ends if end is not None))


def _end(request: Request, index: int, limits: Limits, tokenizer: Tokenizer | None) -> Ended | None:
    """Say how the output of a completion ended it; None: it goes on."""
    ids = request.resumed[index]
    _check_ids(request, index, limits)
    if not ids:
        return None
    by_token = next((at for at in range(len(ids)) if _stops_at(request, ids, at)), None)
    hidden = by_token is not None and not request.params.include_stop_str_in_output
    num_read, string, string_at_end = _stop_string(
        request, ids[: by_token if hidden else None], tokenizer
    )
    if string is not None and num_read < len(ids):
        raise _beyond(request, index, num_read, f"the stop string {string!r}")
    if string is not None:
        return Ended(index, FinishReason.STOP, string)
    if by_token is not None and by_token + 1 < len(ids):
        raise _beyond(request, index, by_token + 1, f"the stop token {ids[by_token]}")
    if by_token is not None:
        eos = ids[by_token] in request.eos_token_ids
        return Ended(index, FinishReason.STOP, None if eos else ids[by_token])
    if len(ids) < request.max_tokens:
        return None
    if string_at_end is not None:
        return Ended(index, FinishReason.STOP, string_at_end)
    return Ended(index, FinishReason.LENGTH)


def _stops_at(request: Request, ids: Sequence[int], at: int) -> bool:
    return ids[at] in request.stop_token_ids and at + 1 >= request.params.min_tokens


def _stop_string(
    request: Request, ids: Sequence[int], tokenizer: Tokenizer | None
) -> tuple[int, str | None, str | None]:
    """Search for stop strings: tokens read, the one found, and the one found if this was all."""
    assembler = new_assembler(request, tokenizer) if request.params.stops else None
    if assembler is None:
        return len(ids), None, None
    piece = assembler.push(ids)
    return piece.num_tokens, piece.stopped, piece.stopped or assembler.finish().stopped


def _check_ids(request: Request, index: int, limits: Limits) -> None:
    ids, vocab = request.resumed[index], limits.vocab_size
    if len(ids) > request.max_tokens:
        reason = f"completion {index} has {len(ids)} tokens, max_tokens={request.max_tokens}"
        raise _impossible(request, reason)
    if ids and not 0 <= min(ids) <= max(ids) < vocab:
        raise _impossible(request, f"completion {index} has ids outside [0, {vocab - 1}]")


def _beyond(request: Request, index: int, count: int, what: str) -> InvalidArgument:
    more = len(request.resumed[index]) - count
    return _impossible(request, f"{more} tokens of completion {index} follow {what}, its end")


def _impossible(request: Request, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-2007 RESUME_IMPOSSIBLE: request {request.id} cannot go on behind the output that it"
        f" was sent with: {reason}. Send for each completion exactly the ids that an answer to"
        " this request had, or nothing of it.",
        field="resume",
    )
