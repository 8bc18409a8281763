"""What cannot work is refused at the call, by name: the option, its value, what is allowed."""

import pytest

from rtp_jax import SamplingParams
from rtp_jax.errors import InvalidArgument, NotFound, RtpError, Unimplemented
from tests.engine.workload import check_idle, small_engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)

BAD_CALLS = {
    "empty prompt": (lambda e: e.generate([[]], GREEDY), InvalidArgument, "prompt"),
    "empty text": (lambda e: e.generate("", GREEDY), InvalidArgument, "prompt"),
    "bytes": (lambda e: e.generate(b"abc", GREEDY), InvalidArgument, "prompt"),
    "number": (lambda e: e.generate(7, GREEDY), InvalidArgument, "prompt"),
    "None": (lambda e: e.generate(None, GREEDY), InvalidArgument, "prompt"),
    "float ids": (lambda e: e.generate([[1.5, 2.0]], GREEDY), InvalidArgument, "prompt"),
    "bool ids": (lambda e: e.generate([[5, True]], GREEDY), InvalidArgument, "prompt"),
    "negative id": (lambda e: e.generate([[5, -1]], GREEDY), InvalidArgument, "prompt"),
    "id too large": (lambda e: e.generate([[5, 10**6]], GREEDY), InvalidArgument, "prompt"),
    "lone surrogate": (lambda e: e.generate("a\ud800", GREEDY), InvalidArgument, "prompt"),
    "too long": (lambda e: e.generate([[5] * 320], GREEDY), InvalidArgument, "prompt"),
    "huge text": (lambda e: e.generate("x" * 10**6, GREEDY), InvalidArgument, "prompt"),
    "unknown key": (lambda e: e.generate({"promt": "a"}, GREEDY), InvalidArgument, "promt"),
    "both keys": (
        lambda e: e.generate({"prompt": "a", "prompt_token_ids": [5]}, GREEDY),
        InvalidArgument,
        "prompt",
    ),
    "salt too long": (
        lambda e: e.generate({"prompt": "a", "cache_salt": "x" * 300}, GREEDY),
        InvalidArgument,
        "cache_salt",
    ),
    "lengths differ": (
        lambda e: e.generate(["a", "b"], [GREEDY] * 3),
        InvalidArgument,
        "sampling_params",
    ),
    "params not params": (
        lambda e: e.generate("a", {"n": 1}),
        InvalidArgument,
        "sampling_params",
    ),
    "on_error": (lambda e: e.generate("a", GREEDY, on_error="ignore"), InvalidArgument, "on_error"),
    "timeout 0": (lambda e: e.generate("a", GREEDY, timeout_s=0), InvalidArgument, "timeout_s"),
    "priority": (lambda e: e.generate("a", GREEDY, priority="high"), InvalidArgument, "priority"),
    "max_tokens": (
        lambda e: e.generate("a", SamplingParams(max_tokens=10**6)),
        InvalidArgument,
        "max_tokens",
    ),
    "stop id": (
        lambda e: e.generate("a", SamplingParams(stop_token_ids=[10**6])),
        InvalidArgument,
        "stop_token_ids",
    ),
    "bias id": (
        lambda e: e.generate("a", SamplingParams(logit_bias={10**6: 1.0})),
        InvalidArgument,
        "logit_bias",
    ),
    "allowed id": (
        lambda e: e.generate("a", SamplingParams(allowed_token_ids=[10**6])),
        InvalidArgument,
        "allowed_token_ids",
    ),
    "request id": (
        lambda e: e.stream("a", GREEDY, request_id="x" * 1000),
        InvalidArgument,
        "request_id",
    ),
    "no continuation": (lambda e: e.score("a", [""]), InvalidArgument, "continuations"),
    "continuations a str": (lambda e: e.score("a", "b"), InvalidArgument, "continuations"),
    "no messages": (lambda e: e.chat([]), InvalidArgument, "messages"),
}


@pytest.mark.capability("typed errors")
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused_by_name(engine, name):
    call, error, field = BAD_CALLS[name]
    with pytest.raises(error, match=r"^RTPJ-\d{4} [A-Z_]+: ") as raised:
        call(engine)
    assert field in raised.value.field or field in str(raised.value)
    check_idle(engine)


BAD_PARAMS = [
    {"n": 0}, {"n": 129}, {"temperature": -0.1}, {"temperature": float("nan")},
    {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -2}, {"min_p": 2.0},
    {"presence_penalty": 3}, {"repetition_penalty": 0}, {"seed": "x"}, {"stop": [""]},
    {"stop": ["a"] * 17}, {"max_tokens": 0}, {"min_tokens": -1}, {"min_tokens": 9, "max_tokens": 8},
    {"logprobs": 21}, {"logprobs": -1}, {"prompt_logprobs": 99}, {"logit_bias": {1: 101}},
    {"logit_bias": [1]}, {"bad_words": [""]}, {"allowed_token_ids": []}, {"stop_token_ids": "ab"},
    {"logprob_token_ids": list(range(200))}, {"truncate_prompt_tokens": 0},
    {"n": 2, "temperature": 0}, {"output_kind": "all"}, {"detokenize": 1},
    {"stop": ["a"], "detokenize": False}, {"tempature": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD_PARAMS, ids=str)
def test_bad_params_are_refused_by_name(options):
    with pytest.raises(InvalidArgument) as raised:
        SamplingParams(**options)
    assert any(name in str(raised.value) for name in options)


@pytest.mark.parametrize("name", ["best_of", "structured_outputs", "logits_processors"])
def test_what_comes_later_is_refused_by_name(name):
    with pytest.raises(Unimplemented, match=name):
        SamplingParams(**{name: object()})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_model_length": 5}, "max_model_len"),
        ({"dtype": "float8"}, "float32"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"num_pages": 1}, "num_pages"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"quantization": "gptq"}, "quantization"),
    ],
)
def test_bad_engine_options_are_refused_by_name(tiny_model, program_cache, options, named):
    with pytest.raises(RtpError, match=named):
        small_engine(tiny_model, program_cache, **options)


@pytest.mark.parametrize("model", ["no/such-model", "../../etc", "", "a" * 5000, "nul\0byte"])
def test_unknown_models(model, program_cache):
    with pytest.raises((NotFound, InvalidArgument), match=r"RTPJ-\d{4}"):
        small_engine(model, program_cache)
