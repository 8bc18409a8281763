"""How fast is rtp_jax on this GPU?  Checks and times kernels, the engine and what others offer.

    python bench/gpu/run_all.py --part kernels|engine|peers [--out DIR] [--dry]
        [--only TEXT] [--tune]

Each part takes at most eight minutes and goes on where it stopped: what `DIR/PART.json` has is not
measured again.  Beside it lies `DIR/PART.md`, a table.  `--dry` takes the same way on a CPU with
tiny shapes, kernels for GPUs simulated; none of its figures means anything.

Besides jax with CUDA, flax and NumPy, the parts `kernels` and `engine` need jaxtyping, and whatever
else `rtp_jax` imports on the way to a runner: tokenizers, jinja2, pyyaml, prometheus-client,
sentencepiece, protobuf; none of grpcio's.  The part `peers` needs torch, and transformers for some
rows; it does not import jax.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # when run by its path
    sys.path.insert(0, str(ROOT))

from bench.gpu.results import Results  # noqa: E402 - only now can it be found

PARTS = ("kernels", "engine", "peers")
SIMULATED_THREADS = "16"
BUDGET_S = 7 * 60  # after which no row begins; one row may take a minute


def main(arguments: list[str]) -> int:
    """Measure what is missing; end with 1 if a row failed or was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "results-local" / "gpu")
    parser.add_argument("--dry", action="store_true", help="on a CPU, tiny, simulated")
    parser.add_argument("--only", default="", help="rows with this text in their name")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds")
    parser.add_argument("--tune", action="store_true", help="part kernels: write a tile table")
    options = parser.parse_args(arguments)
    if options.tune and options.part != "kernels":
        parser.error("--tune goes with --part kernels")
    results = Results(options.out, options.part, dry=options.dry, budget_s=options.budget)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # jax takes 0.75 by itself
    if options.dry:  # every simulated warpgroup waits in a thread of XLA's, which makes one a core
        os.environ.setdefault("NPROC", SIMULATED_THREADS)
    part = importlib.import_module(f"bench.gpu.{options.part}_part")
    if options.tune:
        part.run_tuning(results, dry=options.dry, only=options.only, out=options.out)
    else:
        part.run(results, dry=options.dry, only=options.only)
    counts = results.counts()
    print(f"{options.part}: {counts}; tables in {options.out}")
    return 1 if counts.get("failed") or counts.get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
