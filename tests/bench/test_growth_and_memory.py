"""What a decode step cannot be faster than, and prompts that leave no KV page untouched."""

import random

import pytest

from bench import decode_growth, memory
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import Decided, decide


@pytest.fixture(scope="module")
def decided() -> Decided:
    """Decide on the built-in model with few pages; nothing large is loaded."""
    config = EngineConfig.from_options(
        dtype="bfloat16", kv_memory=4_000_000, skip_tokenizer_init=True
    )
    return decide("rtp-tiny", config)


def test_the_floor_is_the_slower_of_reading_and_multiplying(decided):
    weights, spec = decided.memory.weight_bytes, decided.spec
    kv = 128 * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * 2  # bfloat16
    slow_memory = decode_growth.Rates(bandwidth_gb_s=1e-3, gflops=1e9)
    seconds, bound = decode_growth.floor(decided, 4, 128, slow_memory)
    assert (seconds, bound) == (pytest.approx((weights + 4 * kv) / 1e6), "bytes")

    slow_products = decode_growth.Rates(bandwidth_gb_s=1e9, gflops=1e-3)
    seconds, bound = decode_growth.floor(decided, 4, 128, slow_products)
    attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * 128
    assert (seconds, bound) == (
        pytest.approx(4 * (2 * spec.num_parameters + attention) / 1e6),
        "flops",
    )
    row = decode_growth.compared(decided, 4, 128, 2 * seconds, slow_products)
    assert row["ratio"] == 2


def test_prompts_that_fill_take_every_page(decided):
    plan = decided.memory
    prompts = memory.filling_prompts(plan, range(16, 100), random.Random(0))
    lengths = [len(prompt) + memory.OUTPUT for prompt in prompts]
    assert max(lengths) <= plan.max_model_len
    assert sum(lengths) >= (plan.num_pages - 1) * plan.page_size
