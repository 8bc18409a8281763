"""Layouts: the same after a message, and what differs is said in words."""

import dataclasses

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.page_record import GroupLayout, KvLayout
from rtp_jax.transfer.layout import differences, layout_message, layout_of
from rtp_jax.wire import kv_pb2 as pb
from tests.transfer.served import LAYOUT

INT8 = GroupLayout(layers=3, kv_heads=2, head_dim=8, dtype="int8", scales=True)
OTHERS = {
    "page_size": dataclasses.replace(LAYOUT, page_size=16),
    "model_epoch": dataclasses.replace(LAYOUT, model_epoch="weights-2"),
    "kv_scheme": dataclasses.replace(LAYOUT, kv_scheme="int8"),
    "version": dataclasses.replace(LAYOUT, version=LAYOUT.version + 1),
    "KV groups here": dataclasses.replace(LAYOUT, groups=(*LAYOUT.groups, INT8)),
    "KV group 0": dataclasses.replace(LAYOUT, groups=(INT8,)),
}


@pytest.mark.parametrize("layout", [LAYOUT, *OTHERS.values()])
def test_a_layout_comes_through_a_message(layout):
    message = pb.KvLayout.FromString(layout_message(layout).SerializeToString())
    assert layout_of(message) == layout
    assert layout_of(message).fingerprint == layout.fingerprint


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_named(name):
    (found,) = differences(LAYOUT, OTHERS[name])
    assert name in found
    assert differences(LAYOUT, LAYOUT) == []
    assert OTHERS[name].fingerprint != LAYOUT.fingerprint


@pytest.mark.parametrize(
    "message",
    [pb.KvLayout(groups=[pb.KvGroup()] * 65), pb.KvLayout(kv_scheme="x" * 257)],
)
def test_a_layout_of_no_engine_is_refused(message):
    with pytest.raises(InvalidArgument, match="RTPJ-4301 KV_LAYOUT_INVALID"):
        layout_of(message)


def test_bytes_of_a_page():
    scaled = KvLayout((INT8, LAYOUT.groups[0]), 4, "w", "s")
    assert scaled.page_bytes == 3 * 2 * 2 * 4 * (8 + 4) + 2 * 2 * 2 * 4 * 8 * 2
