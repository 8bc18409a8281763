"""Weights quantized while they load: the built-in model still answers, in C++ and in XLA alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from rtp_jax import Engine, SamplingParams
from rtp_jax.config import native_cache
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.kernels.native import library
from rtp_jax.layers.matrix import fitting
from rtp_jax.quant.schemes import SCHEMES

DEMO = Path(__file__).parents[2] / "rtp_jax" / "assets" / "rtp-tiny" / "demo.json"
CASES = json.loads(DEMO.read_text())
TEXT = "The quick brown fox jumps over the lazy dog, and the list of numbers is sorted."
# How far a logprob of `TEXT` may be from that of the plain model, on average: a value of int8 is
# off by 1/254 of the largest in its row at most, one of int4 by 1/16 of the largest in its group.
# A value of fp8 is off by 1/16 of itself, and so is every number that it meets.
MEAN_ERROR = {"int8": 0.05, "int8_dynamic": 0.08, "int4": 0.5, "fp8": 0.3}
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 64}


def logprobs_and_answers(cache: Path, **options) -> tuple[np.ndarray, list[bool]]:
    """Return the logprobs of a text, and which questions of the demo were answered."""
    with Engine("rtp-tiny", compile_cache=str(cache), **SMALL, **options) as engine:
        greedy = [
            SamplingParams(temperature=0.0, max_tokens=case["max_tokens"], stop="\n")
            for case in CASES
        ]
        outputs = engine.generate([case["prompt"] for case in CASES], greedy, use_tqdm=False)
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        (one,) = engine.generate([TEXT], scored, use_tqdm=False)
    right = [c["expect"] in o.outputs[0].text for c, o in zip(CASES, outputs, strict=True)]
    logprobs = [next(iter(position.values())).logprob for position in one.prompt_logprobs[1:]]
    return np.array(logprobs), right


@pytest.fixture(scope="module")
def plain(program_cache):
    logprobs, right = logprobs_and_answers(program_cache, dtype="float32")
    assert sum(right) >= 4
    return logprobs


@pytest.mark.parametrize(
    ("scheme", "native"),
    [(scheme, native) for scheme in ("int8", "int8_dynamic", "int4") for native in ("auto", "off")]
    + [("fp8", "off")],  # which no native kernel takes
)
@pytest.mark.capability("quantized weights")
def test_a_quantized_model_still_answers(plain, program_cache, scheme, native):
    if native == "auto" and (reason := library.load(native_cache())):
        pytest.skip(reason)
    options = {"dtype": "bfloat16", "quantization": scheme, "native": native}
    options["deterministic"] = scheme == "fp8"  # one program: its layers are not scanned over
    logprobs, right = logprobs_and_answers(program_cache, **options)
    assert np.abs(logprobs - plain).mean() < MEAN_ERROR[scheme]
    assert sum(right) >= (3 if scheme == "int4" else 4)


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("scheme", [None, "int4"])
@pytest.mark.parametrize("head", ["none", "int4"])
def test_the_head_has_a_scheme_of_its_own(plain, program_cache, scheme, head, native):
    if native == "auto" and (reason := library.load(native_cache())):
        pytest.skip(reason)
    options = {"quantization": scheme, "head_quantization": head, "native": native}
    logprobs, _ = logprobs_and_answers(program_cache, dtype="bfloat16", **options)
    error = np.abs(logprobs - plain).mean()
    assert error < (0.03 if scheme is None and head == "none" else 0.8)
    if scheme is None and head == "int4":  # it was not ignored
        assert error > 0.03


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.capability("native kernels")
def test_bfloat16_in_cpp_and_in_xla_agree(plain, program_cache, native):
    logprobs, right = logprobs_and_answers(program_cache, dtype="bfloat16", native=native)
    assert np.abs(logprobs - plain).mean() < 0.03
    assert sum(right) >= 4


def test_a_level_that_cannot_be_had_is_refused(monkeypatch, program_cache):
    monkeypatch.setattr(library, "levels_of_this_cpu", lambda: [])
    with pytest.raises(FailedPrecondition, match="RTPJ-6010 NATIVE_UNAVAILABLE: native=amx"):
        Engine("rtp-tiny", compile_cache=str(program_cache), native="amx", **SMALL)


def test_groups_become_smaller_where_rows_are_short():
    assert fitting(SCHEMES["int4"], 256).group == 128
    assert fitting(SCHEMES["int4"], 192).group == 64
    assert fitting(SCHEMES["int8"], 100).group is None


def test_a_row_that_no_group_divides_is_refused():
    with pytest.raises(InvalidArgument, match="RTPJ-6021 SCHEME_DOES_NOT_FIT") as error:
        fitting(SCHEMES["int4"], 100)
    assert error.value.field == "quantization"
