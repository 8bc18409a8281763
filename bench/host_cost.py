"""What does a step cost on the host, beside the device, at 64 live sequences?

    python -m bench.host_cost [--model rtp-tiny] [--json FILE]

The engine's thread schedules, prepares, dispatches and commits; its CPU clock says how much of a
core that takes for each step.  Waiting for the device costs no CPU time.  The split is wall time,
from the engine's own metrics, means.
"""

import argparse
import statistics
import threading
import time

from bench.record import write_record
from rtp_jax import Engine, SamplingParams
from rtp_jax.metrics import PHASES

ROUNDS = 5
NUM_SEQUENCES = 64
NUM_TOKENS = 200


def engine_thread() -> threading.Thread:
    """Find the engine's thread."""
    return next(thread for thread in threading.enumerate() if thread.name == "rtp-engine")


def one_round(engine: Engine) -> dict[str, float]:
    """Decode 64 sequences together and return milliseconds per step."""
    clock = time.pthread_getcpuclockid(engine_thread().ident)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    prompts = [[5 + i % 200, 7, 9 + i // 200] * 8 for i in range(NUM_SEQUENCES)]
    before = {phase: engine.metrics.step_time[phase].total for phase in PHASES}
    steps, cpu, wall = engine.metrics.num_steps, time.clock_gettime(clock), time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    cpu, wall = time.clock_gettime(clock) - cpu, time.perf_counter() - wall
    steps = engine.metrics.num_steps - steps
    split = {
        phase: (engine.metrics.step_time[phase].total - before[phase]) / steps * 1e3
        for phase in PHASES
    }
    return {"engine_thread_cpu": cpu / steps * 1e3, "wall": wall / steps * 1e3, **split}


def main() -> None:
    """Print the medians of five rounds, after one that warms up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rtp-tiny")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with Engine(arguments.model, max_num_seqs=NUM_SEQUENCES) as engine:
        one_round(engine)
        rounds = [one_round(engine) for _ in range(ROUNDS)]
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    for key, value in medians.items():
        low, high = min(r[key] for r in rounds), max(r[key] for r in rounds)
        print(f"{key:20} {value:7.3f} ms per step   [{low:.3f}, {high:.3f}]")
    if arguments.json:
        figures = {"sequences": NUM_SEQUENCES, "milliseconds_per_step": medians}
        write_record(arguments.json, "host_cost", ("jax", "jaxlib", "numpy"), figures)


if __name__ == "__main__":
    main()
