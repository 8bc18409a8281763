"""What does each sampling feature cost a step?  Prints milliseconds for a batch that uses it.

    python bench/sampler.py [--rows 64] [--vocabularies 4096,151936] [--json FILE]

Every line is the same compiled program, called with other options, so a line also shows that the
features it does not name cost nothing.  `argmax alone` is a program of its own, for comparison.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.runner.sampler import sample
from rtp_jax.runner.sampling_inputs import RowOptions, WideOptions
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS

HISTORY = 4096
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
    """Build wide options that allow everything and move nothing."""
    return WideOptions(
        masks=jnp.full((rows, -(-vocab // 32)), 0xFFFFFFFF, jnp.uint32),
        use_masks=jnp.asarray(case.get("use_masks", False)),
        bias_ids=jnp.full((rows, MAX_LOGIT_BIAS), -1, jnp.int32),
        bias_values=jnp.zeros((rows, MAX_LOGIT_BIAS), jnp.float32),
        use_bias=jnp.asarray(case.get("use_bias", False)),
        logprob_ids=jnp.zeros((rows, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
        use_logprob_ids=jnp.asarray(False),
    )


def best_ms(call, repeats: int = 5) -> float:
    """Time a call: the fastest of several, in milliseconds."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def measure(rows: int, vocab: int, only: str = "") -> dict[str, float]:
    """Measure every case for one size of the vocabulary."""
    steep = jnp.asarray(logits_like_a_model(rows, vocab))
    flat = jnp.asarray(np.random.default_rng(1).normal(size=(rows, vocab)).astype(np.float32))
    history = jnp.asarray(np.random.default_rng(2).integers(0, vocab, (rows, HISTORY), np.int32))
    step = jax.jit(functools.partial(sample, vocab_size=vocab))
    argmax = jax.jit(lambda x: jnp.argmax(x, axis=1))
    times = {"argmax alone": best_ms(lambda: argmax(steep))}
    for name, case in CASES.items():
        if only in name:
            logits = flat if case.get("flat") else steep
            options, wide = options_of(rows, case), wide_of(rows, vocab, case)
            times[name] = best_ms(functools.partial(step, logits, history, options, wide))
    if not only:
        times["sort alone"] = best_ms(lambda: jax.jit(lambda x: jnp.sort(x, axis=1))(steep), 1)
    return times


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
        print(f"{arguments.rows} rows, vocabulary of {vocab}, {jax.devices()[0].device_kind}")
        for name, ms in results[vocab].items():
            print(f"  {name:32s} {ms:9.2f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
