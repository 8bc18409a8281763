"""What both clients send, and how they connect: prompts to messages, files to credentials.

Read next: `client.py`, or `async_client.py`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf import json_format

from rtp_jax.errors import InvalidArgument
from rtp_jax.request import Reuse
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.checks import checked_timeout
from rtp_jax.serving.sampling_messages import message_of_params
from rtp_jax.wire import generation_pb2 as pb

MAX_MESSAGE_BYTES = 64 << 20
# The server is told the timeout and answers with what it has; the call waits a little longer.  Not
# much: a server that stands still says nothing, and its client is to know within a second.
MARGIN_S = 0.9
_EVERY_CHANNEL = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_permit_without_calls", 1),
)
CHANNEL_OPTIONS = (*_EVERY_CHANNEL, ("grpc.keepalive_time_ms", 30_000))
# Whoever has another target need not wait for one that stands still.  It is pinged when it is
# silent, and left if it does not answer; grpc's own pings count as well, and of these keepalive's
# own timeout knows nothing.
ONE_OF_SEVERAL = (
    *_EVERY_CHANNEL,
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1500),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Whom to trust, and who we are: PEM files."""

    ca: str | None = None  # None: the authorities that grpc knows
    cert: str | None = None  # ours, for mTLS
    key: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""
        return grpc.ssl_channel_credentials(*map(_read, (self.ca, self.key, self.cert)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOptions:
    """What a request may say beside its prompt and its sampling."""

    request_id: str = ""
    model: str = ""
    priority: int = 0
    timeout_s: float | None = None
    cache_salt: str = ""
    reuse: Reuse | None = None  # which tiers of KV may be used; None: all there are
    return_prompt_token_ids: bool = False
    prefill_at: Sequence[str] = ()  # workers that may compute KV of the prompt, best first


def channel_options(num_targets: int) -> tuple[tuple[str, int], ...]:
    """Say how each of some targets that serve the same is connected to."""
    return CHANNEL_OPTIONS if num_targets == 1 else ONE_OF_SEVERAL


def generate_request(
    prompt: object, params: SamplingParams | None, options: RequestOptions
) -> pb.GenerateRequest:
    """Spell a request for a str, token ids, {"prompt_token_ids": [...]} or {"messages": [...]}."""
    request = pb.GenerateRequest(return_prompt_token_ids=options.return_prompt_token_ids)
    with _sendable():
        request.request_id, request.model = options.request_id, options.model
        fill_prompt(request, prompt)
        if params is not None:
            request.sampling.CopyFrom(message_of_params(params))
        if options.cache_salt:
            request.cache_salt = options.cache_salt
        request.prefill_at.extend(options.prefill_at)
    if options.reuse is not None:
        request.reuse.CopyFrom(pb.Reuse(**dataclasses.asdict(options.reuse)))
    if options.priority:
        request.priority = options.priority
    if options.timeout_s is not None:
        request.timeout_s = checked_timeout(options.timeout_s)
    return request


def score_request(
    prompt: object, continuations: Sequence, timeout_s: float | None
) -> pb.ScoreRequest:
    """Spell a request for the log-probabilities of continuations."""
    request = pb.ScoreRequest()
    with _sendable():
        fill_prompt(request, prompt)
        for continuation in continuations:
            fill_prompt(request.continuations.add(), continuation)
    if timeout_s is not None:
        request.timeout_s = checked_timeout(timeout_s)
    return request


def fill_prompt(message: pb.GenerateRequest | pb.ScoreRequest | pb.Continuation, prompt) -> None:
    """Put a prompt into a message."""
    if isinstance(prompt, str):
        message.text = prompt
    elif isinstance(prompt, Mapping) and "messages" in prompt:
        if not isinstance(message, pb.GenerateRequest):
            raise _bad_prompt(prompt)
        message.chat.CopyFrom(chat_message(**prompt))
    else:
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else prompt
        try:
            message.token_ids.SetInParent()
            message.token_ids.ids.extend(ids)
        except (TypeError, ValueError) as error:
            raise _bad_prompt(prompt) from error


def chat_message(
    *,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
) -> pb.Chat:
    """Spell a conversation."""
    chat = pb.Chat(
        add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
    )
    for message in messages:
        chat.messages.add(role=message["role"], content=message["content"])
    try:
        json_format.ParseDict(dict(chat_template_kwargs or {}), chat.template_kwargs)
    except json_format.ParseError as error:
        raise InvalidArgument(
            "RTPJ-5109 TEMPLATE_KWARGS_NOT_JSON: chat_template_kwargs has a value that is no JSON."
            " Use strings, numbers, booleans, None, lists and mappings.",
            field="chat_template_kwargs",
        ) from error
    return chat


def call_timeout_s(timeout_s: float | None) -> float | None:
    """Say how long a call may take."""
    return None if timeout_s is None else timeout_s + MARGIN_S


def call_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _read(path: str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"RTPJ-5110 CLIENT_TLS_FILE: {path} cannot be read ({error.__class__.__name__}). Give"
            " a PEM file.",
            field="tls",
        ) from error


@contextlib.contextmanager
def _sendable() -> Iterator[None]:
    """Refuse strings that are not Unicode text."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"RTPJ-5111 TEXT_CANNOT_BE_SENT: a text has the lone surrogate"
            f" U+{ord(error.object[error.start]):04X} at character {error.start}. Replace it;"
            " only Unicode text travels."
        ) from error


def _bad_prompt(prompt: object) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5107 PROMPT_CANNOT_BE_SENT: a {prompt.__class__.__name__} is not a prompt here. Give"
        ' a str, token ids, {"prompt_token_ids": [...]} or, to generate, {"messages": [...]}.',
        field="prompt",
    )
