"""Fuzzed messages: 5 000 of them, none ends in INTERNAL, and the server serves the next request.

A third is random bytes, a third valid messages with bytes changed, cut, doubled or put in, and a
third valid messages with extreme numbers and odd strings.  The seed is printed when one fails.
"""

import logging
import random
import struct

import grpc
import pytest

from rtp_jax.serving.client import Client
from rtp_jax.wire import generation_pb2 as pb
from tests.engine.workload import check_idle
from tests.serving.raw import Raw

NUM_MESSAGES = 5000
SEED = 20_261_120
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["Generation"].methods}
NUMBERS = [0, 1, -1, 2, 127, 128, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "a", "good", "\x00", "é" * 300, "{{ 7 * 7 }}", "\ud7ff\ue000", "../../etc", "😀" * 50]
MAX_TOKENS = 3  # so that what is accepted does not take long
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.CANCELLED,  # an abort that overtook a request of the same id
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a timeout of 5e-324 s
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


def valid(random_: random.Random, message_class: type) -> object:
    """Fill a message with values that are plausible, extreme or odd."""
    message = message_class()
    for field in message_class.DESCRIPTOR.fields:
        if random_.random() < 0.5:
            fill(random_, message, field)
    return message


def fill(random_: random.Random, message, field) -> None:
    """Set one field."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if kind.fields_by_name["value"].message_type is None:
            for _ in range(random_.randrange(3)):
                getattr(message, field.name)[random_.randrange(2**32)] = random_.choice(FLOATS)
        else:
            message.fields["x"].number_value = random_.choice(FLOATS)
    elif kind is not None and kind.full_name.startswith("google.protobuf."):
        message.template_kwargs["x"] = random_.choice(TEXTS)
    elif field.is_repeated:
        for _ in range(random_.randrange(3)):
            values = getattr(message, field.name)
            if kind is None:
                values.append(scalar(random_, field))
            else:
                values.add().CopyFrom(valid(random_, kind._concrete_class))
    elif kind is not None:
        getattr(message, field.name).CopyFrom(valid(random_, kind._concrete_class))
    else:
        setattr(message, field.name, scalar(random_, field))


def scalar(random_: random.Random, field) -> object:
    """Choose a value that a field can hold."""
    if field.type == field.TYPE_BYTES:
        return random_.choice(TEXTS).encode()
    if field.cpp_type == field.CPPTYPE_STRING:
        return random_.choice(TEXTS)
    if field.cpp_type == field.CPPTYPE_DOUBLE:
        return random_.choice(FLOATS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return random_.random() < 0.5
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[field.cpp_type]
    return random_.choice([number for number in NUMBERS if low <= number <= high])


def mutated(random_: random.Random, data: bytes) -> bytes:
    """Change some bytes of a message."""
    out = bytearray(data or b"\x00")
    for _ in range(random_.randrange(1, 4)):
        at = random_.randrange(len(out))
        match random_.randrange(5):
            case 0:
                out[at] = random_.randrange(256)
            case 1:
                out[at] ^= 1 << random_.randrange(8)
            case 2:
                del out[at:]
                out = out or bytearray(b"\x00")
            case 3:
                out[at:at] = out[at : at + random_.randrange(1, 9)]
            case _:
                out[at:at] = struct.pack("<d", random_.choice(FLOATS))
    return bytes(out)


def fuzzed(seed: int) -> tuple[str, bytes]:
    """Make one method and one message."""
    random_ = random.Random(seed)
    method = METHODS[random_.choice([*METHODS, "Generate", "GenerateStream"])]
    kind = random_.randrange(3)
    if kind == 0:
        return method.name, random_.randbytes(random_.randrange(200))
    message = valid(random_, method.input_type._concrete_class)
    if "model" in method.input_type.fields_by_name and random_.random() < 0.8:
        message.model = ""
    if method.name in ("Generate", "GenerateStream"):
        message.sampling.max_tokens = random_.choice([-1, 0, 1, MAX_TOKENS])
    data = message.SerializeToString()
    return method.name, mutated(random_, data) if kind == 1 else data


@pytest.mark.capability("typed errors")
def test_no_message_is_our_fault(real, real_engine, caplog):
    caplog.set_level(logging.CRITICAL, "rtp_jax.requests")
    raw, seen = Raw(real.address), {}
    for seed in range(SEED, SEED + NUM_MESSAGES):
        method, data = fuzzed(seed)
        code, error, *_ = raw.send(method, data, timeout=20)
        seen[code] = seen.get(code, 0) + 1
        assert code in FINE, f"seed {seed}: {method}({data!r}) gave {code}: {error}"
    raw.close()
    assert seen[grpc.StatusCode.OK] > 100  # not everything was refused at the door
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 1000
    with Client(real.address) as client:
        assert client.generate("good").outputs[0].finish_reason == "length"
    assert not real.service.live_ids
    check_idle(real_engine)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_a_seed_always_makes_the_same_message(seed):
    assert fuzzed(seed) == fuzzed(seed)
