"""How does the cost of a decode step grow with its context and its batch?

    python -m bench.decode_growth MODEL --json FILE --plot FILE

A step must read every weight once and the KV of its sequences, and compute their products; it
cannot take less than the slower of the two at the machine's rates.  These are measured before and
after the steps by `bench.machine_limits`, and the better ones count, unless they are given with
`--bandwidth` (GB/s) and `--gflops`.  No prompt is computed: steps are executed as if one had been,
over pages that were written with zeros, so that 32k tokens cost no time to fill.
"""

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from bench.machine_limits import limits
from bench.record import write_record
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import Decided, decide, start
from rtp_jax.request import Request, Sequence, StepPlan, StepRow
from rtp_jax.runner.runner import Runner
from rtp_jax.sampling_params import SamplingParams

BATCHES = (1, 4, 16, 64)
CONTEXTS = (128, 512, 2048, 8192, 32768)
COLUMNS = ("batch", "context", "ms", "floor ms", "ratio", "bound")
WARM_UP = 3


class Rates(NamedTuple):
    """What the machine can do at most, with the cores that this process may use."""

    bandwidth_gb_s: float
    gflops: float  # or integer operations, where products are of integers


def measured_rates(quantization: str | None) -> Rates:
    """Measure what `decode_growth` compares with."""
    found, cores = limits(), len(os.sched_getaffinity(0))
    products = "int8_gops" if quantization == "int8_dynamic" else "bf16_gflops"
    return Rates(found[f"read_gb_s_{cores}"], found[f"{products}_{cores}"])


def main(options: argparse.Namespace) -> None:
    """Print, keep and plot one row for each batch and context that fits."""
    config = EngineConfig.from_options(
        dtype=options.dtype,
        quantization=options.quantization,
        kv_memory=int(options.kv_gb * 1e9),
        max_num_seqs=max(BATCHES),
        max_model_len=max(CONTEXTS) + 1,
        max_num_batched_tokens=max(BATCHES),
        skip_tokenizer_init=True,
    )
    decided = decide(options.model, config)
    given = Rates(options.bandwidth, options.gflops)
    before = given if all(given) else measured_rates(options.quantization)
    runner = start(decided, config, progress=print)
    write_pages(runner)
    times = {case: measure(runner, *case, options.steps) for case in fitting(runner)}
    runner.close()
    after = given if all(given) else measured_rates(options.quantization)
    rates = Rates(*map(max, before, after))
    rows = [compared(decided, *case, seconds, rates) for case, seconds in times.items()]
    print(rates)
    print("".join(f"{name:>12}" for name in COLUMNS))
    for row in rows:
        print("".join(f"{row[name]:>12}" for name in COLUMNS))
    worst = max(row["ratio"] for row in rows)
    print(f"worst: {worst} times the floor")
    if options.json:
        figures = {"model": Path(options.model).name, "dtype": options.dtype, "rows": rows}
        figures |= {"quantization": options.quantization, "rates": rates._asdict()}
        write_record(options.json, "decode_growth", ("jax", "jaxlib", "numpy"), figures)
    if options.plot:
        plot(rows, Path(options.plot))


def fitting(runner: Runner) -> Iterator[tuple[int, int]]:
    """List the batches and contexts whose pages there are."""
    num_pages, page_size = runner.shapes.num_pages, runner.shapes.page_size
    for context in CONTEXTS:
        for batch in BATCHES:
            if batch * (context // page_size + 1) < num_pages:
                yield batch, context


def write_pages(runner: Runner) -> None:
    """Write zeros to all KV pages: what was never written is not read from memory either."""
    assert runner._state is not None
    for array in jax.tree.leaves(runner._state.kv):
        if array.device.platform == "cpu":
            ctypes.memset(array.unsafe_buffer_pointer(), 0, array.nbytes)


def measure(runner: Runner, batch: int, context: int, num_steps: int) -> float:
    """Return the median seconds of a step in which `batch` sequences have `context` tokens each."""
    seconds = []
    for number in range(WARM_UP + num_steps):
        plan = StepPlan(number, tuple(row(runner, slot, context, number) for slot in range(batch)))
        began = time.perf_counter()
        runner.execute(runner.prepare(plan)).to_host()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])


def compared(decided: Decided, batch: int, context: int, seconds: float, rates: Rates) -> dict:
    """Make the row of a case."""
    floor_s, bound = floor(decided, batch, context, rates)
    figures = (batch, context, seconds * 1e3, floor_s * 1e3, seconds / floor_s)
    rounded = [round(figure, 2) for figure in figures]
    return dict(zip(COLUMNS, (*rounded, bound), strict=True))


def row(runner: Runner, slot: int, context: int, number: int) -> StepRow:
    """Plan one token at the end of a context; the first step tells the runner of the pages."""
    per_sequence = context // runner.shapes.page_size + 1
    pages = list(range(1 + slot * per_sequence, 1 + (slot + 1) * per_sequence))
    params = SamplingParams(max_tokens=1, temperature=0)
    prompt = tuple(range(16))
    request = Request(id=str(slot), prompt_token_ids=prompt, params=params)
    sequence = Sequence(request, 0, 0, slot=slot, pages=pages)
    known = 0 if number == 0 else len(pages)
    return StepRow(sequence, slot, context, 1, [slot], pages, known, 1, True)


def floor(decided: Decided, batch: int, context: int, rates: Rates) -> tuple[float, str]:
    """Return the least seconds a step can take, and which rate bounds it."""
    spec = decided.spec
    memory = decided.memory
    kv = batch * context * memory.page_bytes / memory.page_size
    read_s = (memory.weight_bytes + kv) / (rates.bandwidth_gb_s * 1e9)
    attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * context
    flops_s = batch * (2 * spec.num_parameters + attention) / (rates.gflops * 1e9)
    return max((read_s, "bytes"), (flops_s, "flops"))


def plot(rows: list[dict], path: Path) -> None:
    """Draw step time over context, one line for each batch, with its floor."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for batch in BATCHES:
        mine = [row for row in rows if row["batch"] == batch]
        (line,) = axes.plot(
            [row["context"] for row in mine], [row["ms"] for row in mine], "o-", label=f"{batch}"
        )
        floors = [row["floor ms"] for row in mine]
        axes.plot([row["context"] for row in mine], floors, ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="step, ms")
    axes.legend(title="batch (dotted: floor)")
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-gb", type=float, default=12)
    parser.add_argument("--bandwidth", type=float, default=0, help="GB/s; 0: measured")
    parser.add_argument("--gflops", type=float, default=0, help="0: measured")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    main(parser.parse_args())
