"""What does each sampling feature cost a step?  Prints milliseconds for a batch that uses it.

    python -m bench.sampler [--rows 64] [--vocabularies 4096,151936] [--json FILE]

Every line is the same compiled program, called with other options, so a line also shows that the
features it does not name cost nothing.  `argmax alone` and `sort alone` are programs of their own,
for comparison.  The fastest of several calls counts; `cpu` is the processor time of all threads,
which says more than the clock while others use the machine.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.runner.sampler import sample
from rtp_jax.runner.sampling_inputs import RowOptions, WideOptions
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS

HISTORY = 4096
PADDING = 67  # columns that are no tokens
CASES = {
    "greedy": {},
    "temperature": {"temperatures": 1.0},
    "min_p 0.05": {"temperatures": 1.0, "min_ps": 0.05},
    "top_k 50": {"temperatures": 1.0, "top_ks": 50},
    "top_k 50, top_p 0.9": {"temperatures": 1.0, "top_ks": 50, "top_ps": 0.9},
    "top_p 0.9": {"temperatures": 1.0, "top_ps": 0.9},
    "top_p 0.9, flat logits": {"temperatures": 1.0, "top_ps": 0.9, "flat": True},
    "top_p 0.9, flat logits, 1 row": {"temperatures": 1.0, "top_ps": "one", "flat": True},
    "top_k 1000": {"temperatures": 1.0, "top_ks": 1000},
    "penalties": {"repetition": 1.1, "frequency": 0.1, "positions": HISTORY},
    "penalties, 1 row": {"repetition": "one", "positions": HISTORY},
    "masks": {"use_masks": True},
    "logit_bias": {"use_bias": True},
    "logprobs": {"num_logprobs": 20},
}


def logits_like_a_model(rows: int, vocab: int) -> np.ndarray:
    """Make rows of logits that fall off as those of a language model do, in random order."""
    random = np.random.default_rng(0)
    by_rank = 20 - 1.6 * np.log(np.arange(1, vocab + 1))  # Zipf's law with an exponent of 1.6
    ranks = np.stack([random.permutation(vocab) for _ in range(rows)])
    return (by_rank[ranks] + random.normal(size=(rows, vocab)) * 0.5).astype(np.float32)


def options_of(rows: int, case: dict) -> RowOptions:
    """Build row options from a case; "one" asks for a penalty or top_p 0.9 in row 0 only."""
    neutral = {"top_ps": 1.0, "repetition": 1.0}
    arrays = {}
    for name in RowOptions._fields:
        value = case.get(name, {"targets": -1, "num_logprobs": -1}.get(name, neutral.get(name, 0)))
        kind = np.int32
        if name in ("temperatures", "top_ps", "min_ps", "presence", "frequency", "repetition"):
            kind = np.float32
        array = np.full(rows, neutral.get(name, 0) if value == "one" else value, kind)
        if value == "one":
            array[0] = 0.9
        arrays[name] = jnp.asarray(array)
    arrays["seeds"] = jnp.arange(rows, dtype=jnp.uint32)
    arrays["slots"] = jnp.arange(rows, dtype=jnp.int32)
    return RowOptions(**arrays)


def wide_of(rows: int, vocab: int, case: dict) -> WideOptions:
    """Build wide options: a mask without the first 32 ids, a bias of one id, or neither."""
    masks = np.full((rows, -(-vocab // 32)), 0xFFFFFFFF, np.uint32)
    bias_ids = np.full((rows, MAX_LOGIT_BIAS), -1, np.int32)
    if case.get("use_masks"):
        masks[:, 0] = 0
    if case.get("use_bias"):
        bias_ids[:, 0] = 0
    return WideOptions(
        masks=jnp.asarray(masks),
        use_masks=jnp.asarray(case.get("use_masks", False)),
        bias_ids=jnp.asarray(bias_ids),
        bias_values=jnp.ones((rows, MAX_LOGIT_BIAS), jnp.float32),
        use_bias=jnp.asarray(case.get("use_bias", False)),
        logprob_ids=jnp.zeros((rows, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
        use_logprob_ids=jnp.asarray(False),
    )


class Cost(NamedTuple):
    """Milliseconds of a call."""

    wall: float
    cpu: float


def cost(call: Callable[[], object], repeats: int = 7) -> Cost:
    """Time a call: the fastest of several."""
    jax.block_until_ready(call())
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Cost(min(walls) * 1e3, min(cpus) * 1e3)


def measure(rows: int, vocab: int, only: str = "") -> dict[str, Cost]:
    """Measure every case for one size of the vocabulary; some of it is padding."""
    steep = jnp.asarray(logits_like_a_model(rows, vocab))
    flat = jnp.asarray(np.random.default_rng(1).normal(size=(rows, vocab)).astype(np.float32))
    history = jnp.asarray(np.random.default_rng(2).integers(0, vocab, (rows, HISTORY), np.int32))
    library.load(native_cache())
    kernels = library.loaded()  # as an engine has them
    native = None if kernels is None else kernels.level
    step = jax.jit(functools.partial(sample, vocab_size=vocab - PADDING, native=native))
    argmax, sort = jax.jit(lambda x: jnp.argmax(x, axis=1)), jax.jit(lambda x: jnp.sort(x, axis=1))
    costs = {
        "argmax alone": cost(lambda: argmax(steep)),
        "sort alone": cost(lambda: sort(steep), 2),
    }
    for name, case in CASES.items():
        if only in name:
            logits = flat if case.get("flat") else steep
            options, wide = options_of(rows, case), wide_of(rows, vocab - PADDING, case)
            costs[name] = cost(functools.partial(step, logits, history, options, wide))
    return costs


def report(rows: int, vocab: int, costs: dict[str, Cost]) -> None:
    """Print a table and the line that matters most."""
    print(
        f"{rows} rows, vocabulary of {vocab}, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print(f"  {'':32s} {'wall':>9s}    {'cpu':>9s}")
    for name, (wall, cpu) in costs.items():
        print(f"  {name:32s} {wall:9.2f} ms {cpu:9.2f} ms")
    if "greedy" in costs:
        share = costs["greedy"].cpu / costs["sort alone"].cpu
        print(
            f"  a greedy batch costs {costs['greedy'].cpu / costs['argmax alone'].cpu:.2f} of an"
            f" argmax and {share:.4f} of a sort"
        )


def main() -> None:
    """Print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabularies", default="4096,151936")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for vocab in map(int, arguments.vocabularies.split(",")):
        results[vocab] = measure(arguments.rows, vocab, arguments.only)
        report(arguments.rows, vocab, results[vocab])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
