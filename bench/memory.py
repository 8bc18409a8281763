"""How much memory does an engine take, is it what was planned, and does it grow with requests?

    python -m bench.memory MODEL --kv-mb 1024 --json FILE
    python -m bench.memory rtp-tiny --kv-mb 64 --requests 10000

Long prompts that take every KV page come first, because a page takes no memory until it is written.
Run it twice, because a start that compiles takes more: the second finds the programs of the first.
The estimate is what the engine and `rtp-jax-ckpt inspect` plan for the whole process; it is
compared with the most that was resident, or where programs were compiled, with what is resident
after the prompts that fill.  Arrays are what jax holds on the device, compared to the byte.  The
bound is weights as they are held and KV pages, 15 % more, and 400 MB.  Growth is resident memory
after all requests less that after the first fifth of them.
"""

import argparse
import json
import random
from pathlib import Path

from bench.record import write_record
from rtp_jax import Engine, SamplingParams
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


def setting(text: str) -> tuple[str, object]:
    """Read a setting of the engine: a number, or true or false."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def filling_prompts(memory: MemoryPlan, ids: range, rng: random.Random) -> list[list[int]]:
    """Draw prompts that with their outputs take all KV pages, finished ones kept as prefixes."""
    room = (memory.num_pages - 1) * memory.page_size
    length = min(memory.max_model_len, room // FILLING)
    return [rng.choices(ids, k=length - OUTPUT) for _ in range(-(-room // length))]


def main(options: argparse.Namespace) -> None:
    """Serve requests and print the figures."""
    chosen = {"dtype": "bfloat16", "quantization": options.quantization}
    chosen |= {"kv_memory": int(options.kv_mb * MB)} | dict(options.set)
    chosen |= {"compile_cache": options.compile_cache}
    rng, resident = random.Random(0), []
    with Engine(options.model, **chosen) as engine:
        started_mb = status("VmRSS")
        memory, runner = engine._parts.memory, engine._parts.runner
        weights_mb, kv_mb = memory.weight_bytes / MB, memory.kv_bytes / MB
        has_compiled = bool(runner.compile_report.compiled)
        arrays_mb = runner.array_bytes / MB
        params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
        ids = range(16, engine.info.vocab_size)
        engine.generate(filling_prompts(memory, ids, rng), params, use_tqdm=False)
        filled_mb, peak_mb = status("VmRSS"), status("VmHWM")
        sizes = [min(BATCH, options.requests - i) for i in range(0, options.requests, BATCH)]
        for size in sizes:
            prompts = [rng.choices(ids, k=PROMPT) for _ in range(size)]
            engine.generate(prompts, params, use_tqdm=False)
            resident.append(status("VmRSS"))
    estimate_mb, taken_mb = memory.total_bytes / MB, peak_mb
    if has_compiled:
        estimate_mb, taken_mb = memory.after_compiling_bytes / MB, filled_mb
    bound_mb = (weights_mb + kv_mb) * FACTOR + ALLOWED_MB
    figures = {
        "model": Path(options.model).name,
        "quantization": options.quantization,
        "requests": options.requests,
        "weights_mb": round(weights_mb, 1),
        "kv_mb": round(kv_mb, 1),
        "arrays_mb": round(arrays_mb, 3),
        "planned_arrays_mb": round(memory.array_bytes / MB, 3),
        "has_compiled": has_compiled,
        "started_mb": round(started_mb, 1),
        "filled_mb": round(filled_mb, 1),
        "estimate_mb": round(estimate_mb, 1),
        "estimate_share": round(estimate_mb / taken_mb, 3),
        "peak_mb": round(status("VmHWM"), 1),
        "bound_mb": round(bound_mb, 1),
        "growth_mb": round(resident[-1] - resident[len(resident) // 5], 1),
    }
    for name, figure in figures.items():
        print(f"{name:>18}: {figure}")
    if options.json:
        figures["resident_mb"] = [round(each, 1) for each in resident]  # after each batch
        write_record(options.json, "memory", ("jax", "jaxlib", "numpy"), figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-mb", type=float, default=1024)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        type=setting,
        help="of the engine",
    )
    parser.add_argument("--compile-cache", help="where programs are kept; default: the engine's")
    parser.add_argument("--json")
    main(parser.parse_args())
