"""What is the prompt of a message?  Text, token ids, or a conversation rendered by the template.

Sizes are checked before anything is made of the input: a text or a list that cannot fit the model
is refused before it is tokenized or copied.
"""

import asyncio
from collections.abc import Mapping

from google.protobuf import json_format

from rtp_jax.errors import InvalidArgument
from rtp_jax.request import Reuse
from rtp_jax.serving.checks import at_most, missing
from rtp_jax.serving.served import Served
from rtp_jax.wire import generation_pb2 as pb

MAX_TRUNCATION = 16  # a prompt to be truncated may be so many times longer than the model takes
MAX_CHAT_MESSAGES = 1024
MAX_TEMPLATE_KWARGS_BYTES = 64 << 10
MAX_CHARS_PER_TOKEN = 64  # longer texts cannot fit, so they are refused before tokenizing


def prompt_of(
    engine: Served,
    field: str,
    message: pb.GenerateRequest | pb.ScoreRequest | pb.Continuation,
    *,
    truncation: int = 1,
) -> str | list[int]:
    """Read text or token ids, which may be `truncation` times as long as the model takes."""
    match message.WhichOneof("input"):
        case "text":
            check_text(engine, field, message.text)
            return message.text
        case "token_ids":
            limit = engine.info.max_model_len * truncation
            at_most(field, message.token_ids.ids, limit, what="token ids")
            return list(message.token_ids.ids)
        case _:
            raise missing(field, "text, token_ids")


def reuse_of(message: pb.Reuse) -> Reuse:
    """Read which tiers may be used; what is not set is allowed."""
    return Reuse(**{tier.name: allowed for tier, allowed in message.ListFields()})


async def chat_ids(engine: Served, chat: pb.Chat) -> list[int]:
    """Render a conversation off the loop and return its token ids."""
    at_most("chat.messages", chat.messages, MAX_CHAT_MESSAGES, what="messages")
    check_text(engine, "chat", "".join(message.content for message in chat.messages))
    if (size := chat.template_kwargs.ByteSize()) > MAX_TEMPLATE_KWARGS_BYTES:
        raise InvalidArgument(
            f"RTPJ-5013 TEMPLATE_KWARGS_TOO_LARGE: chat.template_kwargs has {size} bytes,"
            f" {MAX_TEMPLATE_KWARGS_BYTES} are allowed. Send less.",
            field="chat.template_kwargs",
        )
    opens = chat.add_generation_prompt or not chat.HasField("add_generation_prompt")
    return await asyncio.to_thread(
        engine.chat_prompt,
        [{"role": message.role, "content": message.content} for message in chat.messages],
        add_generation_prompt=opens,
        continue_final_message=chat.continue_final_message,
        chat_template_kwargs=template_kwargs(chat),
    )


def check_text(engine: Served, field: str, text: str) -> None:
    """Refuse a text that cannot fit."""
    at_most(field, text, engine.info.max_model_len * MAX_CHARS_PER_TOKEN, what="characters")


def template_kwargs(chat: pb.Chat) -> Mapping[str, object]:
    """Read the template's own options: JSON values, whose whole numbers are integers."""
    options = json_format.MessageToDict(chat.template_kwargs)
    return {name: _whole(value) for name, value in options.items()}


def _whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return value
