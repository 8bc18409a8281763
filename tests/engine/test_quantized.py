"""Weights quantized while they load: the built-in model still answers, in C++ and in XLA alike."""

from pathlib import Path

import numpy as np
import pytest

from rtp_jax import Engine
from rtp_jax.config import native_cache
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.kernels.native import library
from rtp_jax.quant.schemes import SCHEMES, fitting
from tests.engine.built_in import (
    ONE_PROGRAM,
    TWO_PROGRAMS,
    answers_of,
    logprobs_of,
    num_right,
)

TEXT = "The quick brown fox jumps over the lazy dog, and the list of numbers is sorted."
# How far a logprob of `TEXT` may be from that of the plain model, on average: a value of int8 is
# off by 1/254 of the largest in its row at most, one of int4 by 1/16 of the largest in its group.
# A value of fp8 is off by 1/16 of itself, and so is every number that it meets.
MEAN_ERROR = {"int8": 0.05, "int8_dynamic": 0.08, "int4": 0.5, "fp8": 0.3}


def logprobs_and_right(cache: Path, **options) -> tuple[np.ndarray, int]:
    """Return the logprobs of a text, and how many questions of the demo were answered."""
    with Engine("rtp-tiny", compile_cache=str(cache), **options) as engine:
        return logprobs_of(engine, [TEXT]), num_right(answers_of(engine))


@pytest.fixture(scope="module")
def plain(program_cache):
    logprobs, right = logprobs_and_right(program_cache, **TWO_PROGRAMS, dtype="float32")
    assert right >= 4
    return logprobs


@pytest.mark.parametrize(
    ("scheme", "native"),
    [(scheme, "auto") for scheme in SCHEMES] + [("int8_dynamic", "off"), ("fp8", "off")],
)
@pytest.mark.capability("quantized weights")
def test_a_quantized_model_still_answers(plain, program_cache, scheme, native):
    if native == "auto" and (reason := library.load(native_cache())):
        pytest.skip(reason)
    # Few tokens and many go different ways in C++; in XLA all sizes are one matmul.
    programs = TWO_PROGRAMS if native == "auto" else ONE_PROGRAM
    options = {**programs, "dtype": "bfloat16", "quantization": scheme, "native": native}
    logprobs, right = logprobs_and_right(program_cache, **options)
    assert np.abs(logprobs - plain).mean() < MEAN_ERROR[scheme]
    assert right >= (3 if scheme == "int4" else 4)


@pytest.mark.parametrize(
    ("scheme", "head", "native"),
    [(None, "int4", "off"), ("int4", "none", "auto"), ("int4", "int4", "auto")],
)
def test_the_head_has_a_scheme_of_its_own(plain, program_cache, scheme, head, native):
    if native == "auto" and (reason := library.load(native_cache())):
        pytest.skip(reason)
    options = {**ONE_PROGRAM, "dtype": "bfloat16", "quantization": scheme, "native": native}
    options |= {"head_quantization": head, "compile_cache": str(program_cache)}
    with Engine("rtp-tiny", **options) as engine:
        error = np.abs(logprobs_of(engine, [TEXT]) - plain).mean()
    assert 0.03 < error < 0.8  # plain bfloat16 is nearer, so neither scheme was ignored


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.capability("native kernels")
def test_bfloat16_in_cpp_and_in_xla_agree(plain, program_cache, native):
    programs = TWO_PROGRAMS if native == "auto" else ONE_PROGRAM
    options = {**programs, "dtype": "bfloat16", "native": native}
    logprobs, right = logprobs_and_right(program_cache, **options)
    assert np.abs(logprobs - plain).mean() < 0.03
    assert right >= 4


def test_a_level_that_cannot_be_had_is_refused(monkeypatch, program_cache):
    monkeypatch.setattr(library, "levels_of_this_cpu", lambda: [])
    with pytest.raises(FailedPrecondition, match="RTPJ-6010 NATIVE_UNAVAILABLE: native=amx"):
        Engine("rtp-tiny", compile_cache=str(program_cache), native="amx", **ONE_PROGRAM)


def test_groups_become_smaller_where_rows_are_short():
    assert fitting(SCHEMES["int4"], 256).group == 128
    assert fitting(SCHEMES["int4"], 192).group == 64
    assert fitting(SCHEMES["int8"], 100).group is None


def test_a_row_that_no_group_divides_is_refused():
    with pytest.raises(InvalidArgument, match="RTPJ-6021 SCHEME_DOES_NOT_FIT") as error:
        fitting(SCHEMES["int4"], 100)
    assert error.value.field == "quantization"
