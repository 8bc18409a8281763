"""Malformed input over gRPC: each case gets its code and id, and the server serves the next one."""

import grpc
import pytest

from rtp_jax.wire import generation_pb2 as pb
from tests.serving.raw import Raw

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NAN, INF = float("nan"), float("inf")


def asked(**sampling) -> bytes:
    """Spell a good prompt with some sampling options."""
    request = pb.GenerateRequest(text="good", sampling=pb.SamplingParams(**sampling))
    return request.SerializeToString()


def generate(**fields) -> bytes:
    """Spell a generate request."""
    return pb.GenerateRequest(**fields).SerializeToString()


def unknown(number: int) -> bytes:
    """Spell a field that no message has."""
    return bytes(pb.GenerateRequest(text="x").SerializeToString()) + _varint(number << 3) + b"\x01"


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


BAD_UTF8 = b"\x1a\x03\xff\xfe\xfd"  # text
NESTED = b"\x32" + bytes([len(_varint(999 << 3)) + 1]) + _varint(999 << 3) + b"\x01"  # sampling.999
BOTH = pb.Chat(add_generation_prompt=True, continue_final_message=True)
BOTH.messages.add(role="user", content="x")
NOTHING_TO_SCORE = pb.ScoreRequest(text="x", continuations=[pb.Continuation(text="")])
CASES = [
    ("no bytes at all", "Generate", b"", "RTPJ-5004"),
    ("no message", "Generate", b"\xff" * 40, "RTPJ-5002"),
    ("half a message", "Generate", generate(text="x" * 50)[:20], "RTPJ-5002"),
    ("text that is not UTF-8", "Generate", BAD_UTF8, "RTPJ-5002"),
    ("an unknown field", "Generate", unknown(99), "RTPJ-5003"),
    ("an unknown field inside", "GenerateStream", generate(text="x") + NESTED, "RTPJ-5003"),
    ("no input", "GenerateStream", generate(request_id="a"), "RTPJ-5004"),
    ("an empty text", "Generate", generate(text=""), "RTPJ-2001"),
    ("no token ids", "Generate", generate(token_ids=pb.TokenIds()), "RTPJ-2001"),
    ("a huge text", "Generate", generate(text="x" * 40_000), "RTPJ-5006"),
    ("huge ids", "Generate", generate(token_ids=pb.TokenIds(ids=[1] * 600)), "RTPJ-5006"),
    ("an unknown id", "Generate", generate(token_ids=pb.TokenIds(ids=[999])), "RTPJ-2002"),
    (
        "too many messages",
        "Generate",
        generate(chat=pb.Chat(messages=[pb.ChatMessage()] * 1025)),
        "RTPJ-5006",
    ),
    ("a bad request id", "Generate", generate(text="x", request_id="a b"), "RTPJ-5005"),
    ("a long request id", "Generate", generate(text="x", request_id="a" * 129), "RTPJ-5005"),
    ("timeout 0", "Generate", generate(text="x", timeout_s=0), "RTPJ-5007"),
    ("timeout -1", "Generate", generate(text="x", timeout_s=-1), "RTPJ-5007"),
    ("timeout NaN", "Generate", generate(text="x", timeout_s=NAN), "RTPJ-5007"),
    ("timeout inf", "GenerateStream", generate(text="x", timeout_s=INF), "RTPJ-5007"),
    ("unknown model", "Generate", generate(text="x", model="gpt"), "RTPJ-5012"),
    ("a path as model", "Generate", generate(text="x", model="../../etc"), "RTPJ-5012"),
    ("temperature NaN", "Generate", asked(temperature=NAN), "RTPJ-1003"),
    ("temperature inf", "Generate", asked(temperature=INF), "RTPJ-1003"),
    ("temperature -1", "GenerateStream", asked(temperature=-1), "RTPJ-1003"),
    ("top_p 0", "Generate", asked(top_p=0), "RTPJ-1003"),
    ("top_p 1.1", "Generate", asked(top_p=1.1), "RTPJ-1003"),
    ("top_k -2", "Generate", asked(top_k=-2), "RTPJ-1003"),
    ("min_p 2", "Generate", asked(min_p=2), "RTPJ-1003"),
    ("n 0", "Generate", asked(n=0), "RTPJ-1003"),
    ("n 2^31-1", "Generate", asked(n=2**31 - 1), "RTPJ-1003"),
    ("n of greedy", "Generate", asked(n=2, temperature=0), "RTPJ-1003"),
    ("max_tokens 0", "Generate", asked(max_tokens=0), "RTPJ-1003"),
    ("fill_context false", "Generate", asked(fill_context=False), "RTPJ-5009"),
    ("min_tokens above max_tokens", "Generate", asked(min_tokens=9, max_tokens=3), "RTPJ-1003"),
    ("logprobs 21", "Generate", asked(logprobs=21), "RTPJ-1003"),
    ("an empty stop", "Generate", asked(stop=[""]), "RTPJ-1003"),
    ("a long stop", "Generate", asked(stop=["x" * 257]), "RTPJ-1003"),
    ("many stops", "Generate", asked(stop=["x"] * 17), "RTPJ-5006"),
    ("stop without text", "Generate", asked(stop=["x"], detokenize=False), "RTPJ-1003"),
    ("many biases", "Generate", asked(logit_bias=dict.fromkeys(range(1025), 1.0)), "RTPJ-5006"),
    ("a bias of NaN", "Generate", asked(logit_bias={3: NAN}), "RTPJ-1003"),
    ("a bias of 101", "Generate", asked(logit_bias={3: 101.0}), "RTPJ-1003"),
    ("nothing allowed", "Generate", asked(allowed_token_ids=pb.TokenIds()), "RTPJ-1003"),
    ("truncate to 0", "Generate", asked(truncate_prompt_tokens=0), "RTPJ-1003"),
    ("repetition 0", "Generate", asked(repetition_penalty=0), "RTPJ-1003"),
    ("a bias of an unknown id", "Generate", asked(logit_bias={999: 1.0}), "RTPJ-2003"),
    (
        "an unknown id allowed",
        "Generate",
        asked(allowed_token_ids=pb.TokenIds(ids=[999])),
        "RTPJ-2003",
    ),
    ("an unknown stop id", "Generate", asked(stop_token_ids=[999]), "RTPJ-2003"),
    ("logprobs of an unknown id", "Generate", asked(logprob_token_ids=[999]), "RTPJ-2003"),
    ("an id of 2^32-1", "Generate", asked(stop_token_ids=[2**32 - 1]), "RTPJ-1003"),
    ("a long salt", "Generate", generate(text="x", cache_salt="x" * 257), "RTPJ-5006"),
    ("more than the context", "Generate", asked(max_tokens=400), "RTPJ-2005"),
    (
        "ids in place of text",
        "Generate",
        generate(token_ids=pb.TokenIds(ids=[2**32 - 1])),
        "RTPJ-2002",
    ),
    ("a chat of nobody", "Generate", generate(chat=pb.Chat()), "RTPJ-3403"),
    ("a chat that contradicts itself", "Generate", generate(chat=BOTH), "RTPJ-3406"),
    ("an empty continuation", "Score", NOTHING_TO_SCORE.SerializeToString(), "RTPJ-1003"),
    ("nothing to tokenize", "Tokenize", b"", "RTPJ-5004"),
    (
        "ids past the vocabulary",
        "Detokenize",
        pb.DetokenizeRequest(token_ids=[512]).SerializeToString(),
        "RTPJ-5011",
    ),
    (
        "a continuation of nothing",
        "Score",
        pb.ScoreRequest(text="x", continuations=[pb.Continuation()]).SerializeToString(),
        "RTPJ-5004",
    ),
    (
        "many continuations",
        "Score",
        pb.ScoreRequest(
            text="x", continuations=[pb.Continuation(text="y")] * 129
        ).SerializeToString(),
        "RTPJ-5006",
    ),
    (
        "a bad id to abort",
        "Abort",
        pb.AbortRequest(request_ids=["\n"]).SerializeToString(),
        "RTPJ-5005",
    ),
    (
        "many ids to abort",
        "Abort",
        pb.AbortRequest(request_ids=["x"] * 1025).SerializeToString(),
        "RTPJ-5006",
    ),
    ("a field where none are", "GetLoads", unknown(7), "RTPJ-5003"),
]

NAMES = [case[0] for case in CASES]


@pytest.fixture(scope="module")
def raw(real):
    sender = Raw(real.address)
    yield sender
    sender.close()


@pytest.mark.parametrize(("method", "data", "id"), [case[1:] for case in CASES], ids=NAMES)
def test_malformed_input_has_its_error(raw, real, method, data, id):
    code = grpc.StatusCode.NOT_FOUND if id == "RTPJ-5012" else INVALID
    found, error, answers, _ = raw.send(method, data)
    assert (found, error.id if error else None, answers) == (code, id, [])
    assert raw.send("Generate", asked(max_tokens=2))[0] == grpc.StatusCode.OK


def test_an_unknown_field_is_named_by_its_path(raw):
    _, error, _, _ = raw.send("Generate", generate(text="x") + NESTED)
    assert error.field == "sampling.999"
    chat = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user")]))
    chat.chat.messages[0].MergeFromString(_varint(77 << 3) + b"\x01")
    _, error, _, _ = raw.send("Generate", chat.SerializeToString())
    assert error.field == "chat.messages.77"


def test_a_message_past_the_limit_is_refused_by_size(servers):
    sender = Raw(servers.start(max_message_bytes=10_000).address)
    code, *_ = sender.send("Generate", generate(text="x" * 20_000))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sender.send("Generate", generate(text="x"))[0] == grpc.StatusCode.OK
    sender.close()


def test_template_options_have_a_limit(raw):
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    chat.template_kwargs["x"] = "y" * 70_000
    code, error, _, _ = raw.send("Generate", generate(chat=chat))
    assert (code, error.id) == (INVALID, "RTPJ-5013")


def test_an_unknown_method_is_unimplemented(raw):
    assert raw.send("Destroy", b"")[0] == grpc.StatusCode.UNIMPLEMENTED
    code, *_ = raw.send("/rtp_jax.generation.v2.Generation/Generate", b"")
    assert code == grpc.StatusCode.UNIMPLEMENTED
