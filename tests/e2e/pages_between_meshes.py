"""Pages travel between engines of unequal size; `tests/parallel` runs this.

What is prefilled on one device is decoded on two, and the other way round.  Where pages hold
float32 the tokens are those of one engine on one device.  Where they hold fewer bits, sums in
another order round a few numbers of a page to their neighbours: log-probabilities move by less
than a bound (`tests/engine/likeness.py`), and now and then a draw falls to another token.
"""

import contextlib

import pytest

from tests.e2e.pair import run_through, started_pair
from tests.e2e.test_disaggregation import long_cases, started
from tests.engine.likeness import check_like, with_logprobs
from tests.engine.workload import Case, cases, run_together, tokens

NUMBERS = [
    {"kv_dtype": "int8", "quantization": "int8"},
    pytest.param({"kv_dtype": "bfloat16"}, marks=pytest.mark.full),
    pytest.param({}, marks=pytest.mark.full),
]


def work() -> list[Case]:
    """Mixed requests, and long prompts; all report the log-probabilities of their tokens."""
    every = cases(26, vocab=2000) + long_cases(6, vocab=2000)
    return with_logprobs(every)


@pytest.mark.parametrize("options", NUMBERS, ids=str)
def test_prefill_and_decode_on_unequal_meshes(program_cache, options):
    exact = not options
    options = {"dtype": "float32", "deterministic": True, "max_num_seqs": 8, **options}
    two_devices = {"tensor_parallel_size": 2}
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(
            started_pair("rtp-tiny", program_cache, of_decode=two_devices, **options)
        )
        one, two = pair.prefill, pair.decode
        assert (one.info.tensor_parallel_size, two.info.tensor_parallel_size) == (1, 2)
        assert one.transfer.layout == two.transfer.layout
        fused = run_together(one, work())
        pair.forget()
        there = run_through(two, work(), [pair.address])
        pair.forget()
        two.transfer.set_role("both")
        running = stack.enter_context(started(two))
        back = run_through(one, work(), [running.address])
    for outputs in (there, back):
        assert sum(output.cached_tokens.get("peer", 0) for output in outputs) > 1000
        check_like(outputs, fused)
        assert not exact or tokens(outputs) == tokens(fused)
