"""May two engines exchange pages?  If their layouts are equal; else it is said what differs."""

import dataclasses

from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.page_record import GroupLayout, KvLayout
from rtp_jax.wire import kv_pb2 as pb

MAX_GROUPS = 64
MAX_TEXT_CHARS = 256


def layout_message(layout: KvLayout) -> pb.KvLayout:
    """Spell a layout as a message."""
    groups = [pb.KvGroup(**dataclasses.asdict(group)) for group in layout.groups]
    return pb.KvLayout(
        version=layout.version,
        groups=groups,
        page_size=layout.page_size,
        model_epoch=layout.model_epoch,
        kv_scheme=layout.kv_scheme,
    )


def layout_of(message: pb.KvLayout) -> KvLayout:
    """Read a layout.

    Raises:
      InvalidArgument: it has more of something than any engine has.
    """
    texts = [message.model_epoch, message.kv_scheme, *(group.dtype for group in message.groups)]
    if len(message.groups) > MAX_GROUPS or any(len(text) > MAX_TEXT_CHARS for text in texts):
        raise InvalidArgument(
            f"RTPJ-4301 KV_LAYOUT_INVALID: the layout has {len(message.groups)} KV groups, at most"
            f" {MAX_GROUPS} are allowed, and texts of at most {MAX_TEXT_CHARS} characters. Send the"
            " layout of the engine that asks.",
            field="layout",
        )
    groups = tuple(
        GroupLayout(each.layers, each.kv_heads, each.head_dim, each.dtype, each.scales)
        for each in message.groups
    )
    return KvLayout(
        groups, message.page_size, message.model_epoch, message.kv_scheme, message.version
    )


def differences(ours: KvLayout, theirs: KvLayout) -> list[str]:
    """Say in words in which fields two layouts differ."""
    names = [field.name for field in dataclasses.fields(KvLayout) if field.name != "groups"]
    found = [
        f"{name} {_field(ours, name)!r} here and {_field(theirs, name)!r} there"
        for name in names
        if _field(ours, name) != _field(theirs, name)
    ]
    if len(ours.groups) != len(theirs.groups):
        found.append(f"{len(ours.groups)} KV groups here and {len(theirs.groups)} there")
        return found
    for number, (our, their) in enumerate(zip(ours.groups, theirs.groups, strict=True)):
        if our != their:
            found.append(f"KV group {number} is {_words(our)} here and {_words(their)} there")
    return found


def layout_differs(ours: KvLayout, theirs: bytes, differ: list[str]) -> FailedPrecondition:
    """Make the error that a peer with another layout gets."""
    return FailedPrecondition(
        f"RTPJ-4302 KV_LAYOUT_DIFFERS: this engine's pages have the layout"
        f" {ours.fingerprint.hex()}, the asker's {theirs.hex()[:64] or 'none'}"
        f" ({'; '.join(differ) or 'see the start of both'}). Start both workers with the same"
        " model, kv_dtype, kv_layers and page_size.",
        field="layout",
    )


def _field(layout: KvLayout, name: str) -> object:
    return dataclasses.asdict(layout)[name]


def _words(group: GroupLayout) -> str:
    scales = " with scales" if group.scales else ""
    shape = f"{group.layers} layers x {group.kv_heads} heads x {group.head_dim}"
    return f"{shape} of {group.dtype}{scales}"
