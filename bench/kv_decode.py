"""What does a decode step cost with KV in fewer bits, and how many tokens fit into the same memory?

    python -m bench.kv_decode MODEL --quantization int8_dynamic --json FILE

Engines that differ in `kv_dtype` alone stand side by side in one process and take turns, so that
what disturbs one disturbs all: in each round every engine runs a few steps of every case.  The
figure of a case is the median of its rounds, and the ratio is that of the medians to the first
scheme's.  No prompt is computed: pages are filled with one number, all of them, because memory that
was never written is not read either.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bench.decode_growth import row
from bench.record import machine, write_record
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide, start
from rtp_jax.request import StepPlan
from rtp_jax.runner.runner import Runner

SCHEMES = ("bfloat16", "int8", "fp8")
CASES = [(1, 512), (1, 1024), (1, 2048), (1, 4096), (8, 512), (8, 1024), (8, 2048), (8, 4096)]
STEPS, WARM_UP = 8, 2
BITS = {"uint16": 0x3C23, "int8": 1, "uint8": 0x08, "float32": 0.01}  # about 0.01, times a scale


class Case(NamedTuple):
    """Sequences of equal length, each of which brings one token."""

    batch: int
    context: int


def main(options: argparse.Namespace) -> None:
    """Print and keep one row for each case, and the tokens that fit."""
    cases = [Case(*case) for case in CASES if case[0] * case[1] <= options.most_tokens]
    print(machine())
    runners = {scheme: runner_of(options, scheme, cases) for scheme in options.schemes}
    seconds: dict[tuple[str, Case], list[float]] = {}
    for _ in range(options.rounds):
        for case in cases:
            for scheme, runner in runners.items():
                seconds.setdefault((scheme, case), []).append(measure(runner, case, options.cpu))
    per_page = {scheme: page_bytes(runner) for scheme, runner in runners.items()}
    first, *_ = options.schemes
    fit = {scheme: round(per_page[first] / size, 3) for scheme, size in per_page.items()}
    print("tokens in the same memory: " + ", ".join(f"{s} {x} times" for s, x in fit.items()))
    rows = [figures(case, options.schemes, seconds) for case in cases]
    for one in rows:
        shown = "  ".join(
            f"{s} {one[s]:8.2f} ms ({one[s + ' ratio']:.3f})" for s in options.schemes
        )
        print(f"batch {one['batch']:2}  context {one['context']:5}  {shown}")
    if options.json:
        kept = {"model": Path(options.model).name, "quantization": options.quantization}
        kept |= {"cpu_time": options.cpu, "rounds": options.rounds}
        kept |= {"tokens_in_the_same_memory": fit, "rows": rows}
        write_record(options.json, "kv_decode", ("jax", "jaxlib", "numpy"), kept)


def runner_of(options: argparse.Namespace, scheme: str, cases: list[Case]) -> Runner:
    """Start a runner with pages for the largest case, and fill them."""
    config = EngineConfig.from_options(
        dtype="bfloat16",
        quantization=options.quantization,
        kv_dtype=scheme,
        num_pages=2 + max(case.batch * (case.context // 16 + 1) for case in cases),
        page_size=16,
        max_num_seqs=max(case.batch for case in cases),
        max_model_len=max(case.context for case in cases) + 1,
        max_num_batched_tokens=max(case.batch for case in cases),
        skip_tokenizer_init=True,
    )
    runner = start(decide(options.model, config), config, progress=lambda _: None)
    assert runner._state is not None
    runner._state = runner._state._replace(kv=jax.tree.map(filled, runner._state.kv))
    return runner


def filled(array: jax.Array) -> jax.Array:
    """Write every number of an array."""
    fill = jax.jit(lambda x: jnp.full_like(x, BITS[x.dtype.name]), donate_argnums=0)
    return jax.block_until_ready(fill(array))


def measure(runner: Runner, case: Case, cpu: bool) -> float:
    """Return the median seconds of a step, of all cores together if `cpu`."""
    now = time.process_time if cpu else time.perf_counter
    seconds = []
    for number in range(WARM_UP + STEPS):
        rows = (row(runner, slot, case.context, number) for slot in range(case.batch))
        plan = StepPlan(number, tuple(rows))
        began = now()
        runner.execute(runner.prepare(plan)).to_host()
        seconds.append(now() - began)
    return statistics.median(seconds[WARM_UP:])


def page_bytes(runner: Runner) -> int:
    """Bytes of a page in all layers, scales included."""
    arrays = jax.tree.leaves(runner.shapes.kv)
    return sum(one.size // one.shape[0] * one.dtype.itemsize for one in arrays)


def figures(case: Case, schemes: list[str], seconds: dict) -> dict:
    """Make the row of a case: medians in ms, and their ratios to the first scheme's."""
    medians = {scheme: statistics.median(seconds[scheme, case]) for scheme in schemes}
    one = {**case._asdict()}
    for scheme, median in medians.items():
        one[scheme] = round(median * 1e3, 3)
        one[f"{scheme} ratio"] = round(median / medians[schemes[0]], 4)
    return one


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-tokens", type=int, default=8 * 4096, help="of a case")
    parser.add_argument("--cpu", action="store_true", help="time of the processor, not the clock's")
    parser.add_argument("--json")
    main(parser.parse_args())
