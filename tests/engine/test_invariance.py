"""The same requests give the same tokens, whatever happens around them (float32).

Alone, together, shuffled, in chunks of any size, with and without the prefix cache, and with so few
pages that sequences are preempted.  Each run asserts that what it is about really happened.
"""

import dataclasses
import json
import random

import pytest
from safetensors.numpy import save_file

from rtp_jax.models.registry import read_spec
from tests.engine.workload import (
    Case,
    cases,
    check_idle,
    run_alone,
    run_together,
    small_engine,
    tokens,
)
from tests.golden import recipe
from tests.models.test_goldens import golden, shapes_of


@pytest.fixture(scope="module")
def alone(tiny_model, program_cache):
    """Every request by itself, without any cache: what all runs must reproduce."""
    with small_engine(tiny_model, program_cache, enable_prefix_caching=False) as engine:
        outputs = run_alone(engine, cases())
        assert engine._parts.scheduler.counters.preemptions == 0
        check_idle(engine)
        return tokens(outputs)


def growing(count: int = 16) -> list[Case]:
    """Requests that start small, so that many are admitted, and then outgrow the pages."""
    return [
        Case(case.prompt[:20], dataclasses.replace(case.params, max_tokens=90))
        for case in cases(count)
    ]


@pytest.mark.capability("continuous batching")
def test_together(alone, tiny_model, program_cache):
    with small_engine(tiny_model, program_cache, enable_prefix_caching=False) as engine:
        assert tokens(run_together(engine, cases())) == alone
        assert engine._parts.scheduler.counters.mixed_steps > 0
        check_idle(engine)


@pytest.mark.capability("prefix cache")
def test_shuffled_with_prefix_cache(alone, tiny_model, program_cache):
    with small_engine(tiny_model, program_cache) as engine:
        order = list(range(len(alone)))
        for seed in range(2):
            random.Random(seed).shuffle(order)
            work = cases()
            outputs = run_together(engine, [work[i] for i in order])
            assert tokens(outputs) == [alone[i] for i in order]
        assert engine._parts.scheduler.counters.hit_tokens > 1000
        assert sum(output.num_cached_tokens for output in outputs) > 500
        check_idle(engine)


@pytest.mark.capability("chunked prefill")
@pytest.mark.parametrize("chunk", [16, 64, 512])
def test_chunks(alone, tiny_model, program_cache, chunk):
    options = {"max_prefill_chunk": chunk, "max_num_batched_tokens": max(chunk, 64)}
    if chunk > 64:  # other buckets than those of `alone`, and no more of them than it takes
        options["max_num_seqs"] = 8
    with small_engine(tiny_model, program_cache, **options) as engine:
        assert tokens(run_together(engine, cases())) == alone
        assert engine._parts.scheduler.counters.chunks > 0
        check_idle(engine)


@pytest.mark.capability("preemption")
def test_preemption(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache) as engine:
        straight = tokens(run_alone(engine, growing()))
    for caching in (False, True):
        options = {"num_pages": 25, "max_num_seqs": 8, "enable_prefix_caching": caching}
        with small_engine(tiny_model, program_cache, **options) as engine:
            outputs = run_together(engine, growing())
            assert tokens(outputs) == straight
            assert engine._parts.scheduler.counters.preemptions > 0
            assert sum(output.num_preemptions for output in outputs) > 0
            check_idle(engine)


@pytest.mark.capability("deterministic")
def test_bfloat16_deterministic(tiny_model, program_cache):
    options = {"dtype": "bfloat16", "deterministic": True}
    with small_engine(tiny_model, program_cache, **options) as engine:
        together = tokens(run_together(engine, cases()))
        engine.reset_prefix_cache()
        order = random.Random(0).sample(range(50), 50)
        shuffled = tokens(run_together(engine, [cases()[i] for i in order]))
        assert shuffled == [together[i] for i in order]
        engine.reset_prefix_cache()
        assert tokens(run_alone(engine, cases())) == together
        check_idle(engine)


@pytest.mark.full
def test_a_wide_model_across_buckets(tmp_path, program_cache):
    wide = golden("llama_wide_tied")  # width 512: sums long enough to differ between shapes
    (tmp_path / "config.json").write_text(json.dumps(wide.config))
    shapes = shapes_of(read_spec(wide.config))
    tensors = {name: recipe.tensor(name, shape, wide.seed) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    options = {"skip_tokenizer_init": True, "max_model_len": 256}
    work = [case for case in cases(40, vocab=1500) if not case.params.stop]
    work = [case for case in work if not case.params.bad_words]
    with small_engine(tmp_path, program_cache, **options) as engine:
        together = tokens(run_together(engine, work))
        engine.reset_prefix_cache()
        assert tokens(run_alone(engine, work)) == together
        check_idle(engine)


@pytest.mark.capability("second start compiles nothing")
def test_five_hundred_mixed_requests_compile_nothing(tiny_model, program_cache):
    with small_engine(tiny_model, program_cache) as engine:
        outputs = run_together(engine, cases(500, seed=1))
        assert len(outputs) == 500
        assert engine.metrics.num_steps > 100
        assert engine.metrics.compile_after_ready == 0
        check_idle(engine)
