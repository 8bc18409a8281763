"""How much memory does an engine take at most, and does it grow with the requests it serves?

    python -m bench.memory MODEL --kv-mb 1024 --json FILE
    python -m bench.memory rtp-tiny --kv-mb 64 --requests 10000

Long prompts that take every KV page come first, because a page takes no memory until it is written.
Peak memory is the high-water mark of the whole process, loading included.  The bound is weights as
they are held and KV pages, 15 % more, and 400 MB for Python, jax and the compiled programs.  Growth
is resident memory after all requests less that after the first fifth of them.
"""

import argparse
import random
from pathlib import Path

from bench.record import write_record
from rtp_jax import Engine, SamplingParams
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide
from rtp_jax.runner.memory_plan import MemoryPlan

MB = 1e6
ALLOWED_MB, FACTOR = 400, 1.15
PROMPT, OUTPUT, BATCH = 64, 8, 500
FILLING = 4  # prompts that take all pages, or more if a context is too short for that


def status(field: str) -> float:
    """Read a field of the process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / MB


def filling_prompts(memory: MemoryPlan, ids: range, rng: random.Random) -> list[list[int]]:
    """Draw prompts that with their outputs take all KV pages, finished ones kept as prefixes."""
    room = (memory.num_pages - 1) * memory.page_size
    length = min(memory.max_model_len, room // FILLING)
    return [rng.choices(ids, k=length - OUTPUT) for _ in range(-(-room // length))]


def main(options: argparse.Namespace) -> None:
    """Serve requests and print the figures."""
    chosen = {"dtype": "bfloat16", "quantization": options.quantization}
    chosen |= {"kv_memory": int(options.kv_mb * MB), "skip_tokenizer_init": True}
    memory = decide(options.model, EngineConfig.from_options(**chosen)).memory
    weights_mb, kv_mb = memory.weight_bytes / MB, memory.kv_bytes / MB
    rng, resident = random.Random(0), []
    with Engine(options.model, **chosen) as engine:
        params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
        ids = range(16, engine.info.vocab_size)
        engine.generate(filling_prompts(memory, ids, rng), params, use_tqdm=False)
        filled_mb = status("VmRSS")
        sizes = [min(BATCH, options.requests - i) for i in range(0, options.requests, BATCH)]
        for size in sizes:
            prompts = [rng.choices(ids, k=PROMPT) for _ in range(size)]
            engine.generate(prompts, params, use_tqdm=False)
            resident.append(status("VmRSS"))
    bound_mb = (weights_mb + kv_mb) * FACTOR + ALLOWED_MB
    figures = {
        "model": Path(options.model).name,
        "quantization": options.quantization,
        "requests": options.requests,
        "weights_mb": round(weights_mb, 1),
        "kv_mb": round(kv_mb, 1),
        "peak_mb": round(status("VmHWM"), 1),
        "bound_mb": round(bound_mb, 1),
        "filled_mb": round(filled_mb, 1),
        "growth_mb": round(resident[-1] - resident[len(resident) // 5], 1),
    }
    for name, figure in figures.items():
        print(f"{name:>14}: {figure}")
    if options.json:
        figures["resident_mb"] = [round(each, 1) for each in resident]  # after each batch
        write_record(options.json, "memory", ("jax", "jaxlib", "numpy"), figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-mb", type=float, default=1024)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--json")
    main(parser.parse_args())
