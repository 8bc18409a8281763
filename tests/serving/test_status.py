"""Statuses: every kind of error has its code and details, and comes back as the error it was."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from rtp_jax import errors
from rtp_jax.errors import Kind
from rtp_jax.serving.status import (
    CLASS_OF,
    CODE_OF,
    DETAILS_KEY,
    MAX_PARTIAL_BYTES,
    PUSHBACK_KEY,
    cut,
    detail_of,
    error_of,
    message_of,
    trailers,
)
from rtp_jax.wire import generation_pb2 as pb


class Failed(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, code, details="words", metadata=()):
        super().__init__()
        self._parts = code, details, metadata

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def details(metadata) -> dict[str, object]:
    """Unpack the details of a status by the name of their type."""
    status = status_pb2.Status.FromString(dict(metadata)[DETAILS_KEY])
    kinds = [error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo]
    kinds += [error_details_pb2.BadRequest, pb.ErrorDetail]
    found = {}
    for packed in status.details:
        for kind in kinds:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = message = kind()
                packed.Unpack(message)
    return found


def test_every_kind_has_a_code_and_a_class():
    assert set(CODE_OF) == set(CLASS_OF) == set(Kind)
    assert len(set(CODE_OF.values())) == len(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_an_error_survives_the_wire(kind):
    error = CLASS_OF[kind]("RTPJ-9999 NAME_OF_IT: what. Why.", field="f", retry_after_s=1.5)
    metadata = trailers(error, request_id="r-1")
    back = error_of(Failed(CODE_OF[kind], str(error), metadata))
    assert (type(back), str(back), back.field) == (type(error), str(error), "f")
    assert back.retry_after_s == (1.5 if error.retryable else None)


def test_a_retryable_error_says_when():
    error = errors.ResourceExhausted("RTPJ-9999 FULL: full. Wait.", retry_after_s=1.25)
    metadata = trailers(error, request_id="r-1")
    found = details(metadata)
    delay = found["RetryInfo"].retry_delay
    assert (delay.seconds, delay.nanos) == (1, 250_000_000)
    assert dict(metadata)[PUSHBACK_KEY] == "1250"
    assert dict(metadata)["x-request-id"] == "r-1"
    assert found["ErrorInfo"].reason == "FULL"
    assert found["ErrorInfo"].metadata["id"] == "RTPJ-9999"
    assert "BadRequest" not in found


def test_a_bad_field_is_named():
    metadata = trailers(errors.InvalidArgument("RTPJ-9999 BAD: top_p=3. No.", field="top_p"))
    found = details(metadata)
    assert found["BadRequest"].field_violations[0].field == "top_p"
    assert "RetryInfo" not in found
    assert PUSHBACK_KEY not in dict(metadata)


@pytest.mark.parametrize(
    ("code", "kind", "id"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable, "RTPJ-5101"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "RTPJ-5102"),
        (grpc.StatusCode.CANCELLED, errors.Unavailable, "RTPJ-5103"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted, "RTPJ-5104"),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented, "RTPJ-5105"),
        (grpc.StatusCode.UNKNOWN, errors.Internal, "RTPJ-5106"),
    ],
)
def test_a_status_of_somebody_else_is_an_error_too(code, kind, id):
    for metadata in ((), ((DETAILS_KEY, b"\xff\xff"),), ((DETAILS_KEY, b""),)):
        error = error_of(Failed(code, metadata=metadata))
        assert (type(error), error.id) == (kind, id)


def test_a_partial_answer_is_cut_to_what_trailers_hold():
    small = pb.GenerateResponse(completions=[pb.Completion(text="abc", token_ids=[1, 2])])
    assert not cut(small)
    large = pb.GenerateResponse(request_id="r", usage=pb.Usage(output_tokens=9))
    for index in range(3):
        large.completions.add(index=index, text="é" * 9000, token_ids=range(1000))
    assert cut(large)
    assert large.ByteSize() <= MAX_PARTIAL_BYTES
    assert large.usage.output_tokens == 9
    assert [set(part.text) for part in large.completions] == [{"é"}] * 3
    many = pb.GenerateResponse(
        completions=[pb.Completion(index=i, text="a" * 99) for i in range(999)]
    )
    assert cut(many)
    assert many.ByteSize() <= MAX_PARTIAL_BYTES


def test_a_long_message_and_a_partial_answer_fit_into_trailers():
    error = errors.DeadlineExceeded("RTPJ-9999 LATE: " + "x" * 9000, field="f")
    partial = pb.GenerateResponse(completions=[pb.Completion(text="y" * 9000)])
    failed = Failed(None, metadata=trailers(error, request_id="r" * 100, partial=partial))
    in_base64 = sum(len(key) + 4 / 3 * len(value) for key, value in failed.trailing_metadata())
    assert in_base64 + len(message_of(error)) < 8000
    detail = detail_of(failed)
    assert detail.partial_is_cut
