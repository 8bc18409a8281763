"""What is refused before anything is made of it: bad bytes, unknown fields, too much of anything.

Nothing is accepted and ignored: a field that this server's `.proto` does not have is an error that
names its number, because its sender meant something by it.
"""

import json
import math
import re
from collections.abc import Iterator, Sized
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from rtp_jax.errors import InvalidArgument

MAX_ID_CHARS = 128
MAX_IDS_PER_ABORT = 1024
MAX_SHOWN = 8
MAX_JSON_DEPTH = 32
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")
M = TypeVar("M", bound=Message)


def parse(message_class: type[M], data: bytes) -> M:
    """Read a message and refuse what it has beyond its `.proto`."""
    try:
        message = message_class.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(
            f"RTPJ-5002 MESSAGE_INVALID: {len(data)} bytes are not a"
            f" {message_class.DESCRIPTOR.full_name}. Build the client from this server's .proto;"
            " strings are UTF-8."
        ) from error
    if unknown := sorted(unknown_fields(message)):
        shown = ", ".join(unknown[:MAX_SHOWN]) + (", …" if len(unknown) > MAX_SHOWN else "")
        raise InvalidArgument(
            f"RTPJ-5003 FIELD_UNKNOWN: {message_class.DESCRIPTOR.name} has fields that this server"
            f" does not know, by number: {shown}. Leave them out, or use a newer server.",
            field=unknown[0],
        )
    return message


def parse_json(data: bytes) -> dict:
    """Read a JSON object, each name once, without the fields that are null: those are not set."""
    try:
        body = json.loads(data, parse_constant=_no_number, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise bad_body(f"is not JSON: {reason[:200]}") from None
    if not isinstance(body, dict):
        raise bad_body("is not an object")
    level: list = [body]
    for _ in range(MAX_JSON_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    if level:
        raise bad_body(f"is nested more than {MAX_JSON_DEPTH} deep")
    return {name: value for name, value in body.items() if value is not None}


def bad_body(reason: str) -> InvalidArgument:
    """Build the error for bytes that are no JSON object."""
    return InvalidArgument(
        f"RTPJ-5405 BODY_INVALID: the body {reason}. Send one JSON object in UTF-8, with the header"
        " `Content-Type: application/json`."
    )


def unknown_fields(message: Message, path: str = "") -> set[str]:
    """Name the unknown fields of a message and all inside it, like `sampling.99`."""
    found = {f"{path}{field.field_number}" for field in UnknownFieldSet(message)}
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in _messages(field, value):
                found |= unknown_fields(inner, f"{path}{field.name}.")
                if len(found) > MAX_SHOWN:
                    return found
    return found


def at_most(field: str, values: Sized, most: int, *, what: str) -> None:
    """Refuse more of something than is allowed, before anything is made of it."""
    if len(values) > most:
        raise InvalidArgument(
            f"RTPJ-5006 INPUT_TOO_LARGE: {field} has {len(values)} {what}, {most} are allowed."
            " Send fewer.",
            field=field,
        )


def checked_request_id(request_id: str, field: str) -> str:
    """Accept an id that is fit for logs and headers."""
    if REQUEST_ID.fullmatch(request_id) is None:
        raise InvalidArgument(
            f"RTPJ-5005 FIELD_INVALID: {field} has {len(request_id)} characters that are not all"
            f" allowed; an id has 1 to {MAX_ID_CHARS} of A-Z a-z 0-9 . _ : / @ + = -.",
            field=field,
        )
    return request_id


def checked_timeout(timeout_s: float) -> float:
    """Accept a positive, finite number of seconds."""
    if not math.isfinite(timeout_s) or timeout_s <= 0:
        raise InvalidArgument(
            f"RTPJ-5007 TIMEOUT_INVALID: timeout_s={timeout_s:g} is not allowed; it must be a"
            " number of seconds > 0. Leave it out to have the server's limit.",
            field="timeout_s",
        )
    return timeout_s


def missing(field: str, choices: str) -> InvalidArgument:
    """Build the error for a request that lacks what it is about."""
    return InvalidArgument(
        f"RTPJ-5004 FIELD_MISSING: {field} is not set. Set one of: {choices}.", field=field
    )


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _messages(field: FieldDescriptor, value: object) -> Iterator[Message]:
    entry = field.message_type
    assert entry is not None
    if entry.GetOptions().map_entry:
        if entry.fields_by_name["value"].message_type is not None:
            yield from value.values()  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, Message):
        yield value
    else:
        yield from value  # pyright: ignore[reportGeneralTypeIssues]
