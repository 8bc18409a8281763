"""Fuzzed `kv.v1`: damaged frames bring only right pages, damaged calls are no fault of ours.

Frames are damaged as a network, a peer of another version or a liar would: bytes changed, cut,
doubled or put in, fields exchanged, pages from elsewhere.
"""

import dataclasses
import logging
import random

import grpc
import pytest
from google.protobuf.message import DecodeError

from rtp_jax.transfer.assembly import Assembly, Corrupt
from rtp_jax.transfer.frames import frames
from rtp_jax.wire import kv_pb2 as pb
from tests.serving.test_fuzz import mutated, valid
from tests.transfer.served import LAYOUT, FakePrefiller, KvServer, chain_of, record_at, wanted

SEED = 20_261_121
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["KvTransfer"].methods}
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
WANT = wanted(6)
CHAIN = chain_of(WANT.token_ids)
RIGHT = [record_at(CHAIN, at) for at in range(6)]
ELSEWHERE = chain_of(wanted(6, seed=1).token_ids)


def damaged(random_: random.Random, frame: pb.PageFrame) -> bytes:
    """Damage a frame in one of many ways."""
    page = random_.choice(list(frame.pages))
    match random_.randrange(9):
        case 0:
            frame.first_page = random_.choice([0, 5, 6, 2**32 - 1, frame.first_page ^ 1])
        case 1:
            page.key, page.digest = page.digest, page.key
        case 2:
            page.offset = random_.choice([1, 2**64 - 1, len(page.payload)])
        case 3:
            page.payload = page.payload[: random_.randrange(len(page.payload))]
        case 4:
            page.payload += random_.randbytes(random_.choice([1, 9, LAYOUT.page_bytes]))
        case 5:
            other = record_at(ELSEWHERE, random_.randrange(6))
            page.payload, page.digest = other.payload, other.digest
        case 6:
            frame.pages.add().CopyFrom(page)
        case 7:
            del frame.pages[:]
        case _:
            return mutated(random_, frame.SerializeToString())
    return frame.SerializeToString()


def take_damaged(seed: int) -> tuple[int, bool]:
    """Assemble a stream with one damaged frame; return how many pages were right, and if it went
    through."""
    random_ = random.Random(seed)
    most = random_.choice([1 << 20, LAYOUT.page_bytes, 77])
    stream = [pb.PageFrame.FromString(each) for each in frames(0, RIGHT, most, last=True)]
    hurt = random_.randrange(len(stream))
    assembly, taken = Assembly(WANT.pages, 0, 0, LAYOUT), 0
    try:
        for number, frame in enumerate(stream):
            data = damaged(random_, frame) if number == hurt else frame.SerializeToString()
            came = pb.PageFrame.FromString(data)
            for record in assembly.pages(came, [page.payload for page in came.pages]):
                assert dataclasses.astuple(record) == dataclasses.astuple(RIGHT[taken]), seed
                taken += 1
    except (Corrupt, DecodeError):
        return taken, False
    return taken, True


def check_frames(number: int) -> None:
    ends = [take_damaged(seed) for seed in range(SEED, SEED + number)]
    whole = sum(through and taken == 6 for taken, through in ends)
    refused = sum(not through for _, through in ends)
    # The rest changed nothing that matters: an unknown field, or a mark that is not looked at.
    assert refused > 0.85 * number
    assert whole < 0.1 * number


def check_calls(number: int) -> None:
    seen: dict[grpc.StatusCode, int] = {}
    prefiller = FakePrefiller(lease_s=0.2)
    with KvServer(prefiller) as server, grpc.insecure_channel(server.address) as channel:
        for seed in range(SEED, SEED + number):
            code = sent(channel, seed)
            seen[code] = seen.get(code, 0) + 1
    assert set(seen) <= FINE, seen
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > number / 10
    assert prefiller.offers.counts.open == prefiller.offers.counts.bytes == 0


def sent(channel: grpc.Channel, seed: int) -> grpc.StatusCode:
    random_ = random.Random(seed)
    method = METHODS[random_.choice(list(METHODS))]
    message = valid(random_, method.input_type._concrete_class)
    if method.name == "Offer" and random_.random() < 0.5:
        message.fingerprint, message.epoch = LAYOUT.fingerprint, ""
        message.deadline_s = random_.choice([0.001, 1.0, 1e300])
    elif method.name != "Hello" and random_.random() < 0.5:
        message.epoch = "e-1"
    if method.name == "Pull":
        message.wait_s = random_.choice([0.0, -1.0, 1e-9, 0.001, float("nan")])
    data = message.SerializeToString()
    data = [data, mutated(random_, data), random_.randbytes(random_.randrange(99))][seed % 3]
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    try:
        answer = kind(path)(data, timeout=10)
        list(answer) if method.server_streaming else answer
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_damaged_frames_bring_no_wrong_page():
    check_frames(2000)


def test_damaged_calls_are_refused(caplog):
    caplog.set_level(logging.CRITICAL, "rtp_jax.requests")
    check_calls(600)


@pytest.mark.full
def test_twenty_thousand_of_each(caplog):
    caplog.set_level(logging.CRITICAL, "rtp_jax.requests")
    check_frames(20_000)
    check_calls(20_000)
