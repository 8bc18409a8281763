"""Messages: every field of options and outputs comes out as it went in; unset is the default."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_jax.outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput, Timing
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.serving.frames import Frames
from rtp_jax.serving.info_messages import loads_message, model_info_message
from rtp_jax.serving.output_messages import (
    completion_message,
    completion_of,
    output_of,
    response_message,
    score_message,
    score_of,
)
from rtp_jax.serving.prompts import template_kwargs
from rtp_jax.serving.sampling_messages import READERS, SCALARS, message_of_params, params_of
from rtp_jax.wire import generation_pb2 as pb
from tests.serving.fake_engine import INFO, FakeEngine

OTHER = {  # a value for each option that is not its default
    "n": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "seed": 7,
    "stop": ["a", "é"],
    "stop_token_ids": [3, 4],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "max_tokens": 99,
    "min_tokens": 2,
    "logprobs": 0,
    "prompt_logprobs": 5,
    "logprob_token_ids": [9],
    "logit_bias": {5: -100.0, 6: 1.5},
    "bad_words": ["bad"],
    "allowed_token_ids": [1, 2, 3],
    "detokenize": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "truncate_prompt_tokens": -1,
}
OPTIONS = [
    field.name for field in dataclasses.fields(SamplingParams) if field.name != "output_kind"
]
DELTA = OutputKind.DELTA


def test_every_option_has_another_value_here():
    assert set(OTHER) == set(OPTIONS)
    defaults = SamplingParams()
    assert not [name for name, value in OTHER.items() if getattr(defaults, name) == value]


def test_every_option_has_a_field_and_every_field_an_option():
    fields = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert fields == {*OPTIONS, "fill_context"}
    assert set(SCALARS) | set(READERS) == fields


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_crosses_the_wire(name):
    params = SamplingParams(**{name: OTHER[name]})
    message = pb.SamplingParams.FromString(message_of_params(params).SerializeToString())
    back = params_of(message, output_kind=DELTA)
    expected = dataclasses.replace(params, output_kind=DELTA)
    assert normal(back) == normal(expected)


def test_all_options_cross_the_wire_together():
    params = SamplingParams(**OTHER | {"detokenize": True})
    back = params_of(message_of_params(params), output_kind=params.output_kind)
    assert normal(back) == normal(params)


def test_what_is_not_set_is_the_default():
    assert params_of(pb.SamplingParams(), output_kind=DELTA) == SamplingParams(output_kind=DELTA)


@pytest.mark.parametrize("name", SCALARS)
def test_zero_is_not_unset(name):
    message = pb.SamplingParams()
    setattr(message, name, 0)
    assert pb.SamplingParams.FromString(message.SerializeToString()).HasField(name)


def test_no_length_means_16_tokens_and_in_a_chat_all_of_them():
    empty = pb.SamplingParams()
    assert params_of(empty, output_kind=DELTA).max_tokens == 16
    assert params_of(empty, output_kind=DELTA, chat=True).max_tokens is None
    five = pb.SamplingParams(max_tokens=5)
    assert params_of(five, output_kind=DELTA, chat=True).max_tokens == 5
    filled = message_of_params(SamplingParams(max_tokens=None))
    assert filled.WhichOneof("length") == "fill_context"
    assert params_of(filled, output_kind=DELTA).max_tokens is None


def normal(params: SamplingParams) -> dict:
    """Spell options so that no list is an empty one, and a string a list of one."""
    values = dataclasses.asdict(params) | {"stop": params.stops}
    return {name: None if value in ([], (), {}) else value for name, value in values.items()}


logprobs = st.dictionaries(
    st.integers(0, 2**31 - 1),
    st.builds(
        Logprob,
        st.floats(-1e30, 0),
        st.none() | st.integers(1, 2**31),
        st.none() | st.text(max_size=3),
    ),
    min_size=1,
    max_size=3,
)
completions = st.integers(0, 4).flatmap(
    lambda count: st.builds(
        CompletionOutput,
        st.integers(0, 127),
        st.text(max_size=9),
        st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count),
        st.none() | st.floats(-1e30, 0),
        st.none() if count == 0 else st.none() | st.lists(logprobs, min_size=count, max_size=count),
        st.sampled_from([None, "stop", "length", "abort", "error"]),
        st.none() | st.text(min_size=1, max_size=5) | st.integers(0, 2**31 - 1),
    )
)
seconds = st.none() | st.floats(0, 1e9)
cached = st.dictionaries(
    st.sampled_from(["device", "host", "disk", "remote", "peer"]), st.integers(1, 2**31)
)


def output_with(cached_tokens: dict[str, int], **fields) -> RequestOutput:
    total = sum(cached_tokens.values())
    return RequestOutput(**fields, cached_tokens=cached_tokens, num_cached_tokens=total)


outputs = st.builds(
    output_with,
    cached,
    request_id=st.text(max_size=9),
    prompt=st.just("a prompt"),
    prompt_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4),
    outputs=st.lists(completions, min_size=1, max_size=3),
    finished=st.just(True),
    prompt_logprobs=st.none() | st.lists(logprobs, max_size=3).map(lambda rest: [None, *rest]),
    num_preemptions=st.integers(0, 2**31),
    timing=st.builds(Timing, seconds, seconds, seconds),
)


@given(completions)
@settings(max_examples=200, deadline=None)
def test_a_completion_crosses_the_wire(completion):
    message = pb.Completion.FromString(completion_message(completion).SerializeToString())
    assert completion_of(message) == completion


@given(outputs)
@settings(max_examples=200, deadline=None)
def test_an_output_crosses_the_wire(output):
    message = response_message(output, with_prompt_ids=True)
    message = pb.GenerateResponse.FromString(message.SerializeToString())
    assert output_of(message, "a prompt") == output
    assert message.usage.output_tokens == sum(len(part.token_ids) for part in output.outputs)


def test_prompt_ids_are_sent_only_if_asked_for():
    output = RequestOutput("r", None, [1, 2], [CompletionOutput(0, "", [])], finished=True)
    message = response_message(output, with_prompt_ids=False)
    assert not message.prompt_token_ids
    assert message.usage.prompt_tokens == 2
    assert output_of(message, [1, 2]).prompt_token_ids == [1, 2]


def test_frames_count_on():
    frames = Frames(with_prompt_ids=True)
    position = {5: Logprob(-1.0, 1, "a")}

    def output(
        ids: list[int], *, index: int = 0, finished: bool = False, known: int
    ) -> RequestOutput:
        parts = [CompletionOutput(index, "x" * len(ids), ids)]
        prompt_logprobs = [None, position, position][:known]
        return RequestOutput("r", None, [7, 8, 9], parts, finished, prompt_logprobs)

    sent = [
        frames.frame(output([], known=2)),
        frames.frame(output([1, 2], known=3)),
        frames.frame(output([3], index=1, known=3)),
        frames.frame(output([4], finished=True, known=3)),
    ]
    assert [frame.sequence for frame in sent] == [0, 1, 2, 3]
    assert [frame.completions[0].first_token for frame in sent] == [0, 0, 0, 2]
    assert [len(frame.prompt_logprobs) for frame in sent] == [2, 1, 0, 0]
    assert [list(frame.prompt_token_ids) for frame in sent] == [[7, 8, 9], [], [], []]
    assert [frame.HasField("usage") for frame in sent] == [True, False, False, True]
    assert sent[-1].usage.output_tokens == 4
    assert sent[-1].finished


def test_a_score_crosses_the_wire():
    score = ScoreOutput("r", [1, 2], [-1.5, -2.0], False, 9)
    message = score_message(score)
    assert score_of(pb.ContinuationScore.FromString(message.SerializeToString()), "r") == score
    assert message.total_logprob == -3.5


def test_what_an_engine_says_of_itself_crosses_the_wire():
    message = model_info_message(INFO)
    for field in dataclasses.fields(INFO):
        if field.name in (
            "default_sampling_params",
            "eos_token_ids",
            "epoch",
            "platform",
            "tensor_parallel_size",  # which GetServerInfo says
            "buckets",
        ):
            continue
        assert getattr(message, field.name) == getattr(INFO, field.name)
    assert list(message.eos_token_ids) == [0]
    loads = FakeEngine().loads()
    for field in dataclasses.fields(loads):
        assert getattr(loads_message(loads), field.name) == getattr(loads, field.name)


def test_template_options_are_json_with_whole_numbers():
    chat = pb.Chat()
    given_options = {"a": True, "b": 3, "c": 2.5, "d": [1, None, {"e": "x"}]}
    chat.template_kwargs.update(given_options)
    assert template_kwargs(chat) == given_options
