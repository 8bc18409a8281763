"""How fast is rtp_jax beside other engines, on the same machine, in one interleaved run?

    python -m bench.peers.setup /tmp/peers          # once: environments, builds, models
    python -m bench.peers.run --scratch /tmp/peers --json bench/results/peers.json
    python -m bench.peers.report bench/results/peers.json

Engines alternate turn by turn: in each round every workload is measured once in every engine,
starting with another engine each time, after the cores have become idle.  An engine computes only
on its turn.  The file is rewritten after every turn, so an interrupted run keeps what it has.
Workloads: decode-bN (context 128, 64 new tokens), prefill-N (one prompt of random ids, up to its
first token), served (32 requests at once, 16 slots), poisson-N (the same ones as they arrive, N a
minute), start (a new process, to its first token), memory (what a new process holds at most while
16 sequences fill the KV memory that was planned).
"""

import argparse
import datetime
import itertools
import json
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.peers.crew import ASKED, OFFERS, Crew, WorkerFailed, need_bytes
from bench.peers.machine import Foreign, memory, tree, wait_idle
from bench.peers.worker import Spec
from bench.peers.workloads import KV_TOKENS, PUBLISHED, SHAPES
from bench.record import machine

WORKLOADS = ("decode-b1", "decode-b16", "prefill-512", "prefill-2048", "served", "poisson-24")
WORKLOADS += ("poisson-96", "start", "memory")
LONG = ("served", "poisson", "start", "memory")  # measured in `--long-rounds` rounds only
FRESH = {"start": "first", "memory": "fill"}  # what a new process is asked for


@dataclass(frozen=True)
class Pause:
    """How long to wait for idle cores before a turn."""

    limit_s: float

    def __call__(self) -> float:
        """Wait; returns the busy share that was seen last."""
        return wait_idle(self.limit_s) if self.limit_s > 0 else -1.0


def rotated(engines: list[str], number: int) -> list[str]:
    """Begin with another engine each time, so that none always follows the same one."""
    shift = number % len(engines)
    return engines[shift:] + engines[:shift]


def fresh_start(
    engine: str, spec: Spec, crew: Crew, workload: str, number: int
) -> dict[str, float]:
    """Start a process and ask it; returns its time, or the memory it has held at most."""
    worker = crew.start(engine, spec)
    try:
        worker.ask(FRESH[workload], number)
        seconds = time.perf_counter() - worker.started_at
        if workload == "start":
            return {"first_token_s": seconds, "load_s": worker.load_s}
        return memory(processes(engine, worker.pid))
    finally:
        worker.close()


def processes(engine: str, pid: int) -> list[int]:
    """List the processes that are the engine: a worker that only asks a server is none of them."""
    return tree(pid)[1:] if engine in ASKED else tree(pid)


class Run:
    """The turns so far, and the file they are written to."""

    def __init__(self, crew: Crew, pause: Pause, file: Path | None, record: dict):
        """Begin; `record` holds what is known of the machine, and gets turns and versions."""
        self._crew, self._pause, self._file = crew, pause, file
        self.record = {**record, "versions": {}, "turns": [], "failures": []}

    def turn(self, engine: str, spec: Spec, workload: str, number: int) -> None:
        """Measure once and note it, or note why it failed."""
        key = {"engine": engine, "model": spec.model, "precision": spec.precision}
        key |= {"workload": workload, "round": number}
        try:
            if workload in FRESH:
                self._crew.make_room(need_bytes(spec))
                idle, foreign = self._pause(), Foreign()
                figures = fresh_start(engine, spec, self._crew, workload, number)
            else:
                worker = self._crew.get(engine, spec)
                self.record["versions"][f"{engine} {spec.precision}"] = worker.versions
                idle, foreign = self._pause(), Foreign()
                figures = worker.ask(workload, number)
        except WorkerFailed as error:
            self._crew.end((engine, spec))
            print(f"{workload:13} {engine:13} failed: {error}", flush=True)
            self.record["failures"].append({**key, "error": str(error)})
            return
        taken = foreign.share()
        self.record["turns"].append({**key, "figures": figures, "foreign": taken, "idle": idle})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(figures.items())[:4])
        print(f"{workload:13} {engine:13} {shown}  (others {taken:.0%})", flush=True)
        if self._file is not None:
            self._file.write_text(json.dumps(self.record, indent=1) + "\n")

    def failed(self, engine: str, spec: Spec, workload: str) -> bool:
        """Tell whether this was tried twice in vain, so that it need not be tried again."""
        wanted = (engine, spec.model, spec.precision, workload)
        names = ("engine", "model", "precision", "workload")
        tries = [tuple(each[name] for name in names) for each in self.record["failures"]]
        return tries.count(wanted) >= 2


def measure(run: Run, crew: Crew, arguments: argparse.Namespace) -> None:
    """Go through models and precisions; within one, through rounds, workloads and engines."""
    for model, precision in itertools.product(arguments.models, arguments.precisions):
        spec = Spec(arguments.scratch, model, precision, arguments.threads)
        engines = [engine for engine in arguments.engines if precision in OFFERS[engine]]
        for number in range(arguments.rounds):
            print(f"-- {model} {precision}, round {number + 1} of {arguments.rounds}", flush=True)
            for place, workload in enumerate(arguments.workloads):
                if workload.startswith(LONG) and number >= arguments.long_rounds:
                    continue
                for engine in rotated(engines, number + place):
                    if not run.failed(engine, spec, workload):
                        run.turn(engine, spec, workload, number)
        for engine in engines:
            crew.end((engine, spec))


def parsed(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--models", nargs="+", default=PUBLISHED, choices=list(SHAPES))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--engines", nargs="+", default=list(OFFERS), choices=list(OFFERS))
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8", "int4", "int4-pure"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long-rounds", type=int, default=2, help=f"rounds of {', '.join(LONG)}")
    parser.add_argument("--quiet-s", type=float, default=60.0, help="longest wait for idle cores")
    parser.add_argument("--log", default="peers.log", help="in the scratch folder")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def end(*_: object) -> None:
    """Leave, with all engines; a second signal, as `timeout` sends, would leave them behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended by SIGTERM")


def main(words: list[str]) -> None:
    """Measure, and say where the figures are."""
    signal.signal(signal.SIGTERM, end)
    arguments = parsed(words)
    record = {
        "bench": "peers",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m bench.peers.run " + " ".join(words),
        "machine": machine(),
        "python": platform.python_version(),
        "threads": arguments.threads,
        "kv_tokens": KV_TOKENS,
    }
    with (Path(arguments.scratch) / arguments.log).open("a") as log:
        crew = Crew(log)
        try:
            measure(Run(crew, Pause(arguments.quiet_s), arguments.json, record), crew, arguments)
        finally:
            crew.close()


if __name__ == "__main__":
    main(sys.argv[1:])
