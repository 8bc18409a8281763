"""Loads a small checkpoint over a mesh and prints what that read and took.

python -m tests.weights.memory_load FOLDER KIND DEVICES
"""

import json
import sys
from pathlib import Path

from bench.loading_memory import measure
from bench.synthetic import Shapes

# Stored in float32 and held in bfloat16, so that every number passes through staging.
KINDS = {
    # 218 MB; its largest tensor has 67.
    "dense": Shapes(
        layers=4, hidden=1024, mlp=2048, queries=1024, kv=512, vocab=16384, files=2, dtype="F32"
    ),
    # 205 MB in shuffled order; its largest tensor has 17.
    "moe": Shapes(
        layers=3, hidden=1024, mlp=512, queries=1024, kv=512, vocab=4096, experts=8, files=3,
        dtype="F32",
    ),
}  # fmt: skip


if __name__ == "__main__":
    folder, kind, devices = sys.argv[1:]
    print(json.dumps(measure(Path(folder), KINDS[kind], int(devices))))
