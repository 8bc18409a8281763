"""The wire contract is what it was: a changed descriptor fails until its snapshot is changed too.

python -m tests.wire.test_descriptor   # accepts the new one; look at the diff before you commit
"""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, text_format

from rtp_jax.wire import generation_pb2, generation_pb2_grpc, kv_pb2, router_pb2

FILES = {
    "generation": generation_pb2.DESCRIPTOR,
    "kv": kv_pb2.DESCRIPTOR,
    "router": router_pb2.DESCRIPTOR,
}
SNAPSHOTS = Path(__file__).parent


def spelled(name: str) -> str:
    """Spell a descriptor as text."""
    message = descriptor_pb2.FileDescriptorProto()
    FILES[name].CopyToProto(message)
    return text_format.MessageToString(message)


@pytest.mark.parametrize("name", FILES)
def test_the_contract_is_what_it_was(name):
    assert spelled(name) == (SNAPSHOTS / f"{name}.descriptor.txt").read_text()


def test_scalars_of_sampling_know_whether_they_are_set():
    for field in generation_pb2.SamplingParams.DESCRIPTOR.fields:
        assert field.is_repeated or field.has_presence, field.name


@pytest.mark.parametrize("name", FILES)
def test_enums_begin_with_unspecified(name):
    messages = FILES[name].message_types_by_name.values()
    nested = [enum for message in messages for enum in message.enum_types]
    for enum in [*FILES[name].enum_types_by_name.values(), *nested]:
        assert enum.values[0].name.endswith("_UNSPECIFIED")


@pytest.mark.smoke
def test_the_stubs_import_by_their_full_name():
    assert generation_pb2_grpc.GenerationStub.__module__ == "rtp_jax.wire.generation_pb2_grpc"


if __name__ == "__main__":
    for file in FILES:
        (SNAPSHOTS / f"{file}.descriptor.txt").write_text(spelled(file))
