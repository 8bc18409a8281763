"""What is asked: lengths by distribution, ids by seed and draw, arrivals, traces."""

import json

import numpy as np
import pytest

from rtp_jax.benchmark.lengths import Lengths, parse_lengths
from rtp_jax.benchmark.trace import read_trace
from rtp_jax.benchmark.workload import Workload, poisson, replayed
from rtp_jax.errors import InvalidArgument

FIXED = Lengths.fixed(8)


def draw(text: str, size: int = 4000) -> np.ndarray:
    """Draw from a distribution."""
    rng = np.random.default_rng(0)
    return np.array(parse_lengths("--prompt-tokens", text).draw(rng, size))


def test_lengths_follow_their_distribution():
    assert draw("7", 3).tolist() == [7, 7, 7]
    uniform = draw("uniform:10:20")
    assert (uniform.min(), uniform.max()) == (10, 20)
    assert uniform.mean() == pytest.approx(15, abs=0.3)
    octaves = np.log2(draw("loguniform:16:4096"))  # 8 octaves, each as likely
    assert octaves.min() == 4
    assert 11.9 < octaves.max() <= 12
    assert np.histogram(octaves, 8)[0] == pytest.approx(500, rel=0.2)
    lognormal = draw("lognormal:200:0.5:1000")
    assert np.median(lognormal) == pytest.approx(200, rel=0.05)
    assert np.log(lognormal).std() == pytest.approx(0.5, rel=0.05)
    assert lognormal.max() <= 1000


@pytest.mark.parametrize(
    "text",
    [
        *("0", "x", "-3", "1.5", "99999999999", "normal:3:4"),
        *("uniform:9:3", "uniform:0:3", "uniform:3"),
        *("lognormal:0:1:9", "lognormal:5:nan:9", "lognormal:5:1"),
    ],
)
def test_lengths_that_are_none(text):
    with pytest.raises(InvalidArgument, match="RTPJ-5501 BENCH_OPTION_INVALID: --prompt-tokens"):
        parse_lengths("--prompt-tokens", text)


def test_a_draw_repeats_lengths_but_not_ids():
    lengths = parse_lengths("-", "uniform:50:90")
    workload = Workload(num_requests=20, prompt_tokens=lengths, output_tokens=lengths, seed=3)
    first, again, other = (workload.requests(500, draw) for draw in (0, 0, 1))
    assert first == again
    assert [len(each.prompt) for each in first] == [len(each.prompt) for each in other]
    outputs = [each.num_output_tokens for each in first]
    assert outputs == [each.num_output_tokens for each in other]
    assert len(set(outputs)) > 1
    assert not any(a.prompt[:4] == b.prompt[:4] for a, b in zip(first, other, strict=True))
    ids = {id for each in first for id in each.prompt}
    assert ids <= set(range(500))
    assert len(ids) > 400


def test_a_shared_prefix_is_as_long_as_asked():
    lengths = parse_lengths("-", "uniform:40:80")
    shared = Workload(
        num_requests=9, prompt_tokens=lengths, output_tokens=FIXED, shared_prefix=0.5
    ).requests(1000)
    longest = max((each.prompt for each in shared), key=len)
    for each in shared:
        half = round(len(each.prompt) / 2)
        assert each.prompt[:half] == longest[:half]
        if each.prompt is not longest:
            assert each.prompt[half : half + 4] != longest[half : half + 4]


def test_poisson_arrivals_have_their_rate_and_keep_their_shape():
    asked = Workload(num_requests=3000, prompt_tokens=FIXED, output_tokens=FIXED).requests(9)
    slow = np.array([each.at_s for each in poisson(asked, 2.0, 5)])
    fast = np.array([each.at_s for each in poisson(asked, 8.0, 5)])
    gaps = np.diff(slow)
    assert gaps.mean() == pytest.approx(0.5, rel=0.06)
    assert gaps.std() == pytest.approx(0.5, rel=0.1)  # as the exponential distribution's mean
    np.testing.assert_allclose(slow, 4 * fast)


def trace_file(tmp_path, *lines: object) -> str:
    """Write a trace."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return str(path)


def test_a_trace_keeps_its_prefixes_when_scaled(tmp_path):
    path = trace_file(
        tmp_path,
        {"timestamp": 0, "input_length": 1200, "output_length": 640, "hash_ids": [0, 1, 2]},
        {"timestamp": 4000, "input_length": 1100, "output_length": 1, "hash_ids": [0, 1, 3]},
        {"timestamp": 6000, "input_length": 1024, "output_length": 64, "hash_ids": [5, 1]},
        {"timestamp": 9000, "input_length": 1024, "output_length": 64, "hash_ids": [9, 9]},
    )
    trace = read_trace(path, most=3, length_scale=1 / 32, time_scale=0.25)
    workload = Workload(num_requests=1, prompt_tokens=FIXED, output_tokens=FIXED, trace=trace)
    asked = replayed(workload.requests(1000), trace)
    assert [each.at_s for each in asked] == [0.0, 1.0, 1.5]
    assert [each.num_output_tokens for each in asked] == [20, 1, 2]
    first, second, third = (each.prompt for each in asked)
    assert [len(first), len(second), len(third)] == [38, 34, 32]  # 1200 / 32 is 37.5, to even
    assert first[:32] == second[:32]
    assert first[32:34] != second[32:34]
    assert third[16:32] == first[16:32]  # the same block at the same place
    assert workload.requests(1000, 1)[0].prompt[:8] != first[:8]


def test_rounding_leaves_no_prompt_short(tmp_path):
    line = {"input_length": 512 * 9, "hash_ids": list(range(9)), "output_length": 1}
    trace = read_trace(trace_file(tmp_path, line), most=None, length_scale=0.03, time_scale=1.0)
    (prompt,) = trace.prompts(1000, (0,))
    assert trace.block_tokens == 15
    assert len(prompt) == round(512 * 9 * 0.03) > 9 * 15


def test_prompts_that_are_spelled_out(tmp_path):
    path = trace_file(
        tmp_path,
        {"prompt": "hello", "output_length": 3},
        {"prompt_token_ids": [4, 5], "output_length": 6},
        {"input_length": 5},
    )
    trace = read_trace(path, most=None, length_scale=1.0, time_scale=1.0)
    assert (trace.has_text, trace.has_prompts, trace.timed) == (True, True, False)
    asked = Workload(
        num_requests=1, prompt_tokens=FIXED, output_tokens=FIXED, trace=trace
    ).requests(50)
    assert [each.prompt for each in asked[:2]] == ["hello", (4, 5)]
    assert len(asked[2].prompt) == 5
    assert [each.num_output_tokens for each in asked] == [3, 6, 8]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[1]", "no JSON object"),
        ({"output_length": 3}, "not just one of"),
        ({"prompt": "a", "input_length": 3}, "not just one of"),
        ({"prompt": ""}, "no text"),
        ('{"prompt": "\\ud800"}', "surrogates not allowed"),
        ({"prompt_token_ids": []}, "empty"),
        ({"prompt_token_ids": [-1]}, "no list of ids"),
        ({"prompt_token_ids": [1 << 31]}, "no token id"),
        ({"input_length": 0}, "input_length=0"),
        ({"input_length": True}, "input_length=True"),
        ({"input_length": 5, "output_length": "x"}, "output_length='x'"),
        ({"input_length": 5, "timestamp": -1}, "timestamp=-1"),
        ({"input_length": 5, "hash_ids": 3}, "hash_ids"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, words):
    path = trace_file(tmp_path, {"input_length": 5}, line)
    with pytest.raises(InvalidArgument, match=rf"RTPJ-5503 TRACE_INVALID: line 2 .*{words}"):
        read_trace(path, most=None, length_scale=1.0, time_scale=1.0)


def test_a_trace_that_is_not_there(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    for name, words in (("no", "cannot be read"), ("empty", "is empty"), ("bytes", "UTF-8")):
        with pytest.raises(InvalidArgument, match=f"RTPJ-5503 .*{words}"):
            read_trace(str(tmp_path / name), most=None, length_scale=1.0, time_scale=1.0)
