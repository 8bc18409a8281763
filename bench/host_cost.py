"""What does a step cost on the host, beside the device, at 64 live sequences?

    python -m bench.host_cost [--model rtp-tiny] [--json FILE]

CPU time of the engine's thread: of each station of the loop, of the four together, and of the whole
thread, which also waits for the device, counts and takes messages.  Five rounds after a warm-up.
"""

import argparse
import statistics
import threading
import time

from bench.record import write_record
from rtp_jax import Engine, SamplingParams

ROUNDS = 5
NUM_SEQUENCES = 64
NUM_TOKENS = 200
STATIONS = ("schedule", "prepare", "execute", "commit")
OF_SCHEDULER = ("schedule", "commit")


def engine_thread() -> threading.Thread:
    """Find the engine's thread."""
    return next(thread for thread in threading.enumerate() if thread.name == "rtp-engine")


def timed(owner: object, station: str, spent: dict[str, float]) -> None:
    """Add the CPU time of a method's calls to `spent`."""
    method = getattr(owner, station)

    def call(*args, **kwargs):
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[station] += time.thread_time() - began

    setattr(owner, station, call)


def one_round(engine: Engine, number: int, spent: dict[str, float]) -> dict[str, float]:
    """Decode 64 sequences together and return milliseconds per step."""
    clock = time.pthread_getcpuclockid(engine_thread().ident)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    prompts = [[5 + i, 7 + number, 9] * 8 for i in range(NUM_SEQUENCES)]
    spent.update(dict.fromkeys(STATIONS, 0.0))
    steps, thread = engine.metrics.num_steps, time.clock_gettime(clock)
    engine.generate(prompts, params, use_tqdm=False)
    thread = time.clock_gettime(clock) - thread
    steps = engine.metrics.num_steps - steps
    figures = {**spent, "all four": sum(spent.values()), "whole thread": thread}
    return {name: seconds / steps * 1e3 for name, seconds in figures.items()}


def main() -> None:
    """Print the medians of five rounds, after one that warms up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rtp-tiny")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with Engine(arguments.model, max_num_seqs=NUM_SEQUENCES) as engine:
        spent = dict.fromkeys(STATIONS, 0.0)
        for station in STATIONS:
            owner = engine._parts.scheduler if station in OF_SCHEDULER else engine._parts.runner
            timed(owner, station, spent)
        rounds = [one_round(engine, number, spent) for number in range(ROUNDS + 1)][1:]
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    for key, value in medians.items():
        low, high = min(r[key] for r in rounds), max(r[key] for r in rounds)
        print(f"{key:12} {value:7.3f} ms of CPU per step   [{low:.3f}, {high:.3f}]")
    if arguments.json:
        figures = {"sequences": NUM_SEQUENCES, "milliseconds_per_step": medians}
        write_record(arguments.json, "host_cost", ("jax", "jaxlib", "numpy"), figures)


if __name__ == "__main__":
    main()
