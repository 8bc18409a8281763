"""Which chat messages may a template see, and in which form?

Messages come from a client, so they are checked and copied into plain data first.  A content in
parts becomes one string, lines between its parts; the arguments of tool calls become objects,
because that is what templates of Hugging Face expect.  `chat.py` renders the result.
"""

import json
from typing import Any

from rtp_jax.errors import InvalidArgument
from rtp_jax.text.tokenizer import check_text

MAX_MESSAGES = 8192
MAX_ROLE_CHARS = 64
MAX_DEPTH = 32


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Check and copy a conversation."""
    if not isinstance(messages, list | tuple) or not messages:
        raise bad_field("messages", "is not a list of at least one message")
    if len(messages) > MAX_MESSAGES:
        raise bad_field("messages", f"has {len(messages)} messages, {MAX_MESSAGES} are allowed")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def checked_data(value: Any, field: str, *, depth: int = 0) -> Any:
    """Copy what JSON could hold; refuse anything else."""
    if depth > MAX_DEPTH:
        raise bad_field(field, f"is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        check_text(value, field=field)
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        items = enumerate(value)
        return [checked_data(item, f"{field}[{i}]", depth=depth + 1) for i, item in items]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {
            checked_data(key, field): checked_data(item, f"{field}.{key[:60]}", depth=depth + 1)
            for key, item in value.items()
        }
    raise bad_field(field, f"holds a {type(value).__name__}, which is not plain data")


def bad_field(field: str, what: str) -> InvalidArgument:
    """Make the error for one field of a conversation."""
    return InvalidArgument(
        f"RTPJ-3403 CHAT_MESSAGE_INVALID: {field} {what}. "
        'A message is {"role": "user", "content": "text"}.',
        field=field,
    )


def _message(message: Any, field: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_field(field, f"is a {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= MAX_ROLE_CHARS:
        raise bad_field(f"{field}.role", f"is not a string of 1 to {MAX_ROLE_CHARS} characters")
    tool_calls = message.get("tool_calls")
    if "content" not in message and not tool_calls:
        raise bad_field(f"{field}.content", "is missing")
    rest = {key: value for key, value in message.items() if key not in ("content", "tool_calls")}
    checked = checked_data(rest, field)
    checked["content"] = _content(message.get("content"), f"{field}.content", bool(tool_calls))
    if tool_calls:
        checked["tool_calls"] = _tool_calls(tool_calls, f"{field}.tool_calls")
    return checked


def _content(content: Any, field: str, may_lack: bool) -> str | None:
    if isinstance(content, str):
        return checked_data(content, field)
    if content is None and may_lack:
        return None
    if not isinstance(content, list | tuple):
        raise bad_field(field, f"is a {type(content).__name__}, not a string or a list of parts")
    return "\n".join(_part(part, f"{field}[{i}]") for i, part in enumerate(content))


def _part(part: Any, field: str) -> str:
    if not isinstance(part, dict):
        raise bad_field(field, f"is a {type(part).__name__}, not an object")
    kind = part.get("type")
    if kind != "text":
        raise InvalidArgument(
            f"RTPJ-3407 CHAT_MEDIA_UNSUPPORTED: {field} has the type {str(kind)[:60]!r}; this "
            "build takes text only. Leave the part out, or describe it in words.",
            field=field,
        )
    if not isinstance(part.get("text"), str):
        raise bad_field(f"{field}.text", "is not a string")
    return checked_data(part["text"], f"{field}.text")


def _tool_calls(calls: Any, field: str) -> list[Any]:
    calls = checked_data(calls, field)
    if not isinstance(calls, list):
        raise bad_field(field, "is not a list")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise bad_field(f"{field}[{i}]", "is not an object that holds a function")
        if isinstance(arguments := function.get("arguments"), str):
            name = f"{field}[{i}].function.arguments"
            try:
                function["arguments"] = checked_data(json.loads(arguments or "{}"), name)
            except (ValueError, RecursionError) as error:
                if isinstance(error, InvalidArgument):
                    raise
                raise bad_field(name, "is not JSON") from None
    return calls
