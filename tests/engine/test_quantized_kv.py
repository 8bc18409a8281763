"""Pages of int8 and fp8: the built-in model still remembers, and tokens depend on nothing else."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rtp_jax import Engine
from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from tests.engine.built_in import ONE_PROGRAM, answers_of, logprobs_of
from tests.engine.workload import (
    Case,
    cases,
    check_idle,
    run_alone,
    run_together,
    small_engine,
    tokens,
)

HELD_OUT = json.loads((Path(__file__).parents[2] / "tools/rtp_tiny/held_out.json").read_text())
WINDOW = 250  # tokens, about as many as the model was trained to look back on
MAX_LOSS = 0.002  # that quantized KV may cost, as a share
# How far a logprob may be from that of the same model with bfloat16 pages, on average: a number of
# int8 is off by 1/254 of the largest of its head at most, one of fp8 by 1/16 of itself.
MEAN_ERROR = {"int8": 0.02, "fp8": 0.1, "0-1:bfloat16,2-3:int8": 0.02}


def logprobs_and_answers(cache: Path, **options) -> tuple[np.ndarray, list[str]]:
    """Return the logprobs of held-out texts, and the answers to the questions of the demo."""
    options |= {**ONE_PROGRAM, "dtype": "bfloat16", "compile_cache": str(cache)}
    with Engine("rtp-tiny", **options) as engine:
        return logprobs_of(engine, HELD_OUT, window=WINDOW), answers_of(engine)


@pytest.fixture(scope="module")
def plain(program_cache):
    return logprobs_and_answers(program_cache)


@pytest.mark.parametrize(
    ("kv", "native"),
    [
        pytest.param("int8", "off", marks=pytest.mark.full),
        ("fp8", "auto"),
        ("0-1:bfloat16,2-3:int8", "auto"),
    ],
)
@pytest.mark.capability("quantized KV")
def test_what_is_remembered_in_fewer_bits_is_still_recalled(plain, program_cache, kv, native):
    if native == "auto" and (reason := library.load(native_cache())):
        pytest.skip(reason)
    option = "kv_layers" if ":" in kv else "kv_dtype"
    logprobs, answers = logprobs_and_answers(program_cache, native=native, **{option: kv})
    error = np.abs(logprobs - plain[0])
    assert 0 < error.mean() < MEAN_ERROR[kv]
    assert logprobs.mean() >= plain[0].mean() * (1 + MAX_LOSS)  # both are negative
    assert answers == plain[1]


@pytest.mark.capability("quantized KV")
def test_chunks_prefixes_and_preemption_change_no_token(tiny_model, program_cache):
    kv = {"kv_dtype": "fp8", "kv_layers": "1:int8"}
    options = {"dtype": "bfloat16", "deterministic": True, **kv}
    # Half of the requests start small, so that many are admitted, and then outgrow the pages.
    growing = [
        Case(case.prompt[:20], dataclasses.replace(case.params, max_tokens=90))
        for case in cases(12)
    ]
    work = [*cases(13), *growing]
    with small_engine(tiny_model, program_cache, enable_prefix_caching=False, **options) as engine:
        alone = tokens(run_alone(engine, work))
    with small_engine(tiny_model, program_cache, max_prefill_chunk=16, **options) as engine:
        assert tokens(run_together(engine, work)) == alone
        hits = engine._parts.scheduler.counters.hit_tokens
        assert tokens(run_together(engine, work[:13])) == alone[:13]
        assert engine._parts.scheduler.counters.hit_tokens > hits + 200
        assert engine._parts.scheduler.counters.chunks > 0
        identity = engine._parts.scheduler._ledger._identity
        assert identity is not None
        assert engine.info.kv_dtype.encode() in identity._engine  # other schemes, other pages
        check_idle(engine)
    with small_engine(tiny_model, program_cache, num_pages=25, **options) as engine:
        assert tokens(run_together(engine, growing)) == alone[13:]
        assert engine._parts.scheduler.counters.preemptions > 0
        check_idle(engine)
