"""Starts `vllm_cpu.py` as vLLM's documentation advises: compiled, one thread bound to each core.

Intel's OpenMP runtime and tcmalloc are loaded before all others.  The loader and the runtime read
their settings when a process begins, so they are set here and the process begins anew.
"""

import glob
import json
import os
import sys

from bench.peers.worker import Spec

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # done here, as it does it for its worker processes
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "KMP_BLOCKTIME": "5",
    "KMP_TPAUSE": "0",
}
# Below the scratch folder, made by `setup.py`.
PRELOADED = ("tcmalloc/usr/lib/*/libtcmalloc_minimal.so.4", "vllm/lib/libiomp5.so")


def launch() -> None:
    """Become `vllm_cpu.py`, in the environment that vLLM wants."""
    spec = Spec(**json.loads(sys.argv[1]))
    found = [glob.glob(f"{spec.scratch}/{name}") for name in PRELOADED]
    if not all(found):
        sys.exit(f"not there: one of {PRELOADED} below {spec.scratch}; run bench.peers.setup")
    cores = sorted(os.sched_getaffinity(0))[: spec.threads]
    os.environ.update(
        ENVIRONMENT,
        LD_PRELOAD=":".join(paths[0] for paths in found),
        OMP_NUM_THREADS=str(len(cores)),
        KMP_AFFINITY=f"granularity=fine,explicit,proclist={cores}".replace(" ", ""),
        VLLM_CACHE_ROOT=f"{spec.scratch}/vllm-cache",
        TORCHINDUCTOR_CACHE_DIR=f"{spec.scratch}/vllm-cache/inductor",
    )
    os.execv(sys.executable, [sys.executable, "-m", "bench.peers.engines.vllm_cpu", *sys.argv[1:]])


if __name__ == "__main__":
    launch()
