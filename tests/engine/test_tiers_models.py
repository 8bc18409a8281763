"""Tiers change no token of the built-in model, nor of one with the widths of Qwen3-0.6B.

Every combination of tiers, with device pages for half, twice and eight times the working set.
"""

import pytest

from tests.engine.test_tiers import answer_all, check_tiers_idle, engine_of, options_of
from tests.redis_server import redis_server
from tests.tiny_model import write_tiny_model

WIDTHS = {  # of Qwen3-0.6B: pages are as large as its, but for the number of layers
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
COMBINATIONS = ("host", "disk", "remote", "host+disk", "host+remote", "disk+remote")
COMBINATIONS += ("host+disk+remote",)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("redis")
    with redis_server() as server:
        yield server


def check_all(model, cache, server, folder, combinations, times) -> None:
    """Hold the tokens of each combination against those of an engine without tiers."""
    with engine_of(model, cache, times=10) as engine:
        right = answer_all(engine)
    for names in combinations:
        for each in times:
            at = folder / f"{names}-{each}"
            options = options_of(names, server, at)
            options |= {"kv_host_bytes": 1 << 30} if "kv_host_bytes" in options else {}
            with engine_of(model, cache, times=each, **options) as engine:
                assert answer_all(engine) == right, (names, each)
                hits = engine._parts.scheduler.counters.tier_hit_tokens
                assert (hits[names.split("+")[0]] > 0) is (each < 1), (names, each)
                check_tiers_idle(engine)


@pytest.mark.full
@pytest.mark.parametrize("names", COMBINATIONS)
def test_the_built_in_model(program_cache, server, tmp_path, names):
    check_all("rtp-tiny", program_cache, server, tmp_path, [names], [0.5, 2, 8])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a model as wide as Qwen3-0.6B, with a seventh of its layers."""
    return write_tiny_model(tmp_path_factory.mktemp("wide"), num_hidden_layers=4, **WIDTHS)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", COMBINATIONS)
def test_a_model_as_wide_as_qwen3_of_600_million(wide, program_cache, server, tmp_path, names):
    check_all(wide, program_cache, server, tmp_path, [names], [0.5, 2, 8])
