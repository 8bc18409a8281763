"""How do sampling options cross the wire?  By name; what is not set takes the default.

The fields of `SamplingParams` in `wire/generation.proto` are those of `rtp_jax.SamplingParams`, but
for `max_tokens=None`, which travels as `fill_context`, and `output_kind`, which the method decides.
"""

from collections.abc import Callable

from rtp_jax.errors import InvalidArgument
from rtp_jax.sampling_params import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    OutputKind,
    SamplingParams,
)
from rtp_jax.serving.checks import at_most
from rtp_jax.wire import generation_pb2 as pb

MAX_ALLOWED_TOKEN_IDS = 1 << 20  # more than any vocabulary
CAPS = {
    "stop": MAX_STOPS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logprob_token_ids": MAX_LOGPROB_TOKEN_IDS,
    "logit_bias": MAX_LOGIT_BIAS,
    "bad_words": MAX_BAD_WORDS,
}
SCALARS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
    "include_stop_str_in_output",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
)


def params_of(
    message: pb.SamplingParams, *, output_kind: OutputKind, chat: bool = False
) -> SamplingParams:
    """Build sampling options from what is set in a message; the rest are defaults.

    A chat without a length answers until the context is full, as `Engine.chat` does.
    """
    options: dict[str, object] = {"output_kind": output_kind}
    if chat:
        options["max_tokens"] = None
    for field, value in message.ListFields():
        if field.name in CAPS:
            at_most(f"sampling.{field.name}", value, CAPS[field.name], what="entries")
        name, read = READERS.get(field.name, (field.name, _same))
        options[name] = read(value)
    return SamplingParams(**options)  # pyright: ignore[reportArgumentType]


def message_of_params(params: SamplingParams) -> pb.SamplingParams:
    """Spell all options out, so that the server's defaults do not matter."""
    message = pb.SamplingParams(
        stop=params.stops,
        stop_token_ids=params.stop_token_ids or (),
        logprob_token_ids=params.logprob_token_ids or (),
        bad_words=params.bad_words or (),
    )
    for name in SCALARS:
        if (value := getattr(params, name)) is not None:
            _set(message, name, value)
    if params.max_tokens is None:
        message.fill_context = True
    for token_id, bias in (params.logit_bias or {}).items():
        message.logit_bias[token_id] = bias
    if params.allowed_token_ids is not None:
        message.allowed_token_ids.ids.extend(params.allowed_token_ids)
    return message


def _set(message: pb.SamplingParams, name: str, value: object) -> None:
    try:
        setattr(message, name, value)
    except ValueError as error:
        raise InvalidArgument(
            f"RTPJ-5008 NUMBER_TOO_LARGE_TO_SEND: {name}={value!r} does not fit its field on the"
            " wire. Use a smaller number.",
            field=name,
        ) from error


def _same(value: object) -> object:
    return value


def _fill_context(value: bool) -> None:
    if not value:
        raise InvalidArgument(
            "RTPJ-5009 LENGTH_CONTRADICTS: sampling.fill_context=false says neither how many"
            " tokens nor all of them. Set max_tokens, or fill_context=true, or neither.",
            field="sampling.fill_context",
        )


def _allowed(message: pb.TokenIds) -> list[int]:
    at_most("sampling.allowed_token_ids", message.ids, MAX_ALLOWED_TOKEN_IDS, what="ids")
    return list(message.ids)


# field on the wire -> option, and how its value is read
READERS: dict[str, tuple[str, Callable]] = {
    "fill_context": ("max_tokens", _fill_context),
    "allowed_token_ids": ("allowed_token_ids", _allowed),
    "logit_bias": ("logit_bias", dict),
    "stop": ("stop", list),
    "stop_token_ids": ("stop_token_ids", list),
    "logprob_token_ids": ("logprob_token_ids", list),
    "bad_words": ("bad_words", list),
}
