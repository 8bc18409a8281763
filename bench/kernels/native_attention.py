"""How close does native paged attention come to the machine's limits, and is it ahead of XLA's?

    python -m bench.kernels.native_attention [--level avx2] [--longest 32768]

Decoding reads every key and value once, so its unit is GB/s against `bench.machine_limits`;
prefill is judged by the products of the causal triangle, in GFLOP/s.  Each call of a decode row is
another layer, so that pages come from memory; the best and the median of the repetitions are shown.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.machine_limits import limits
from bench.record import machine, write_record
from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.kernels.paged_attention import KERNELS
from rtp_jax.kernels.pages import StepInputs

MODELS = {"Qwen3-0.6B": (16, 8, 128), "Llama-3.2-1B": (32, 8, 64)}  # heads, KV heads, head_dim
DECODE = [(1, 128), (1, 1024), (1, 8192), (1, 32768), (16, 128), (16, 1024), (4, 8192)]
PREFILL = [(512, 512), (2048, 2048), (8192, 512)]  # keys, of which are new
PAGE_SIZE = 16
POOL_BYTES = 512 * 2**20  # of a decode row, over all of its layers
REPETITIONS = 7


class Row(NamedTuple):
    """One measurement: sequences of equal length that bring equally many new tokens."""

    model: str
    batch: int
    keys: int
    new: int

    def bytes_read(self) -> int:
        _, kv_heads, dim = MODELS[self.model]
        return self.batch * self.keys * kv_heads * dim * 2 * 2

    def flops(self) -> int:
        heads, _, dim = MODELS[self.model]
        return (
            4 * self.batch * heads * dim * (self.new * self.keys - self.new * (self.new - 1) // 2)
        )


def inputs(row: Row) -> tuple[jax.Array, jax.Array, StepInputs]:
    """Draw queries, bfloat16 pages in a random order, and the step."""
    heads, kv_heads, dim = MODELS[row.model]
    draw = np.random.default_rng(0)
    width = -(-row.keys // PAGE_SIZE)
    pages = 1 + width * row.batch
    layers = 1 if row.new > 1 else int(np.clip(POOL_BYTES // max(row.bytes_read(), 1), 1, 28))
    table = (1 + draw.permutation(pages - 1)).reshape(row.batch, width)
    numbers = draw.standard_normal((pages, 1, 2, kv_heads, PAGE_SIZE, dim), np.float32)
    bits = np.repeat((numbers.view(np.uint32) >> 16).astype(np.uint16), layers, axis=1)
    position = np.tile(np.arange(row.keys - row.new, row.keys), row.batch)
    step = StepInputs(
        positions=jnp.asarray(position[None], jnp.int32),
        sequence_of=jnp.asarray(np.repeat(np.arange(row.batch), row.new), jnp.int32),
        num_tokens=jnp.int32(row.batch * row.new),
        page_table=jnp.asarray(table, jnp.int32),
        query_start=jnp.arange(row.batch, dtype=jnp.int32) * row.new,
        query_count=jnp.full(row.batch, row.new, jnp.int32),
    )
    query = draw.standard_normal((row.batch * row.new, heads, dim), np.float32)
    return jnp.asarray(query, jnp.bfloat16), jnp.asarray(bits), step


def seconds(call: Callable[[], jax.Array]) -> tuple[float, float]:
    """Give the best and the median time of one call."""
    call().block_until_ready()
    times = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - begin)
    return min(times), statistics.median(times)


def measure(row: Row, kernel: str) -> tuple[float, float]:
    """Time one layer of a kernel, in seconds."""
    query, pages, step = inputs(row)
    attend = functools.partial(KERNELS[kernel].paged_attention, scale=query.shape[2] ** -0.5)

    def layers(query, pages, step):
        def add(layer, total):
            return total + attend(query, pages, layer, step)

        return jax.lax.fori_loop(0, pages.shape[1], add, jnp.zeros_like(query))

    program = jax.jit(layers).lower(query, pages, step).compile()
    best, median = seconds(lambda: program(query, pages, step))
    return best / pages.shape[1], median / pages.shape[1]


def main(level: str, longest: int, path: str | None) -> None:
    """Print one line for each shape and kernel."""
    if reason := library.load(native_cache(), level=level, report=print):
        raise SystemExit(reason)
    loaded = library.loaded()
    assert loaded is not None
    bound = limits()
    print(f"{machine()}, jax {jax.__version__}, level {loaded.level}")
    print({name: figure for name, figure in bound.items() if not name.startswith("int8")})
    found = []
    for model in MODELS:
        rows = [Row(model, batch, keys, 1) for batch, keys in DECODE]
        rows += [Row(model, 1, keys, new) for keys, new in PREFILL]
        for row in (row for row in rows if row.keys <= longest):
            for kernel in ("native_cpu", "xla_cpu"):
                best, median = measure(row, kernel)
                found.append(
                    {**row._asdict(), "kernel": kernel, "best_s": best, "median_s": median}
                )
                work, unit = (
                    (row.bytes_read(), "GB/s") if row.new == 1 else (row.flops(), "GFLOP/s")
                )
                print(
                    f"{model:13} batch {row.batch:2} keys {row.keys:5} new {row.new:4} {kernel:10}"
                    f" {best * 1e3:9.3f} ms {work / best / 1e9:8.1f} {unit}"
                    f" (median {work / median / 1e9:.1f})",
                    flush=True,
                )
    if path:
        write_record(path, "native_attention", ("jax", "jaxlib"), {"limits": bound, "rows": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", default="auto")
    parser.add_argument("--longest", type=int, default=32768, help="keys of a sequence")
    parser.add_argument("--json")
    given = parser.parse_args()
    main(given.level, given.longest, given.json)
