"""The measurement of quality: its models are what they say, its comparisons find what is there."""

import json
import math

import numpy as np
import pytest

from bench.quality.answers import draw_cases, held_out, windows
from bench.quality.arms import CALIBRATED, checkpoint_arms
from bench.quality.distributions import distributions, moved
from bench.quality.kv_choices import judge, rivals
from bench.quality.models import RTP_TINY, write_outliers, write_random
from rtp_jax.engine.kv_choice import Ranking, rank
from rtp_jax.errors import InvalidArgument
from rtp_jax.text.tokenizer import load_tokenizer

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
ALONE = ({"int8": 3.0, "fp8": 5.0}, {"int8": 9.0, "fp8": 4.0}, {"int8": 1.0, "fp8": 2.0})


@pytest.mark.full
def test_outliers_change_no_bit_and_make_keys_of_8_bits_worse(tmp_path, program_cache):
    model = write_outliers(RTP_TINY, tmp_path / "model", layers=[0], factor=32.0)
    options = {"texts": [held_out()[18][:300]], "compile_cache": str(program_cache)}
    plain, outliers, rounded = (
        distributions(str(folder), dtype="float32", **options, **kv)
        for folder, kv in ((RTP_TINY, {}), (model, {}), (model, {"kv_dtype": "int8"}))
    )
    np.testing.assert_array_equal(outliers, plain)
    assert moved(plain, outliers) == (0.0, 0.0, 1.0)
    assert moved(plain, rounded).divergence > 2e-4  # 6e-5 without outliers


def test_a_random_model_is_about_as_sure_as_it_is_meant_to_be(tmp_path, program_cache):
    model = write_random(tmp_path / "model", **SMALL)
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 2
    found = distributions(
        str(model), [held_out()[18][:300]], dtype="float32", compile_cache=str(program_cache)
    )
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-4)
    entropy = -(np.exp(found) * found).sum(-1).mean()
    logits = 3 * np.random.default_rng(0).standard_normal((64, 2048))
    likely = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert entropy == pytest.approx(-(likely * np.log(likely)).sum(-1).mean(), abs=0.3)


def test_distributions_are_compared_as_the_formula_says():
    first = np.log([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).astype(np.float32)
    second = np.log([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]).astype(np.float32)
    found = moved(first, second)
    nats = (0.5 * math.log(2) - 0.25 * math.log(2)) / 2
    assert found.divergence == pytest.approx(nats, rel=1e-5)
    entropy = -(0.5 * math.log(0.125) + 0.4 * math.log(0.2) + 0.6 * math.log(0.6)) / 2
    assert found.share == pytest.approx(nats / entropy, rel=1e-5)
    assert found.agreement == 0.5


def test_a_better_choice_of_the_same_bytes_is_found():
    def add_up(schemes):
        return sum(one.get(scheme, 0) for one, scheme in zip(ALONE, schemes, strict=True))

    def crossed(schemes):  # the last two layers mend what the other does
        return add_up(schemes) - 100 * (tuple(schemes) == ("plain", "fp8", "int8"))

    row = judge(add_up, rank(add_up, 3), 2, sample=0)
    assert (row.chosen, row.divergence, row.better) == (("int8", "plain", "int8"), 4.0, [])
    assert len(row.rivals) == 3 * 2 * 2 - 1
    assert row.fixed() == {
        "first in int8": 12.0, "first in fp8": 9.0, "last in int8": 10.0, "last in fp8": 6.0
    }  # fmt: skip
    assert judge(crossed, rank(add_up, 3), 2, sample=0).better == [("plain", "fp8", "int8")]


def test_rivals_of_many_layers_are_fixed_ones_neighbours_and_a_sample():
    ranking = Ranking(ALONE * 4)
    chosen = tuple(ranking.first(5))
    found = rivals(chosen, ranking.best, 7)
    assert {len(choice) - choice.count("plain") for choice in found} == {5}
    one_other = [each for each in found if sum(map(str.__ne__, each, chosen)) == 2]
    assert len(one_other) >= 5 * 7  # each chosen layer for each other one
    assert ("int8",) * 5 + ("plain",) * 7 in found
    assert 5 * 7 + 5 + 4 < len(found) <= 5 * 7 + 5 + 5 + 4 + 7


def test_checkpoints_are_named_and_must_be_there():
    (arm,) = checkpoint_arms([f"gptq, groups of 64={RTP_TINY}"])
    assert (arm.name, arm.folder, arm.may_add) == ("gptq, groups of 64", RTP_TINY, CALIBRATED)
    for given in ("gptq", "gptq=no-such-folder", f"={RTP_TINY}"):
        with pytest.raises(InvalidArgument, match="RTPJ-1101 CONFIG_INVALID: --checkpoint="):
            checkpoint_arms([given])


def test_texts_and_tasks_are_the_same_for_every_model():
    tokenizer = load_tokenizer(RTP_TINY)
    cut = windows(tokenizer, held_out())
    assert max(map(len, cut)) == 256
    assert min(map(len, cut)) > 1
    first, again = (list(draw_cases(tokenizer, "recall", 6)) for _ in range(2))
    assert first == again
    assert len({tuple(question) for question, _ in first}) == 6
    ends = [answer[-1] for _, answer in first]
    assert ends == [tokenizer.encode("<|end|>")[-1], ends[1]] * 3
    assert ends[0] != ends[1]
