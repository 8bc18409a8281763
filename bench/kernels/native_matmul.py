"""How fast are products with packed weights, and how far from what this machine can do?

    python -m bench.kernels.native_matmul [--rows 1,16,512] [--schemes bfloat16,fp8_block] [--xla]

Weights of a shape are a stack of more than `STACK_BYTES`, walked layer by layer in one program, so
that every layer comes from memory and not from a cache.  Shares are of the larger of two times:
weight bytes over read bandwidth, and operations over the rate of products, both as
`bench.machine_limits` measures them in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.machine_limits import limits
from bench.record import machine, write_record
from rtp_jax.config import native_cache
from rtp_jax.kernels.linear import linear
from rtp_jax.kernels.native import library, packing
from rtp_jax.quant.quantized_array import NATIVE, ROWS, QuantizedArray
from rtp_jax.quant.schemes import (
    FROM_CHECKPOINTS,
    PLAIN,
    SCHEMES,
    Scheme,
    num_groups,
    values_dtype,
    values_shape,
)

STACK_BYTES = 600 << 20
PASSES = 5
MAX_OPERATIONS = 1e12  # of a pass: fewer layers where rows are many
NUMBERS = jnp.dtype(jnp.bfloat16)
BY_NAME = {"bfloat16": PLAIN, **SCHEMES, **FROM_CHECKPOINTS}
BY_NAME |= {f"int4_{group}": SCHEMES["int4"]._replace(group=group) for group in (64, 32)}
WHOLE = ("int8_dynamic", "int4", "int4_zeros", "int4_64", "int4_32")  # multiplied as integers


class Shape(NamedTuple):
    """One call of a model: weights that share x, and what follows."""

    name: str
    inner: int
    outers: tuple[int, ...]
    epilogue: str = "none"


SHAPES = (
    Shape("qwen3-0.6b qkv", 1024, (2048, 1024, 1024)),
    Shape("qwen3-0.6b o", 2048, (1024,), "add"),
    Shape("qwen3-0.6b gate up", 1024, (3072, 3072), "silu_mul"),
    Shape("qwen3-0.6b down", 3072, (1024,), "add"),
    Shape("qwen3-0.6b head", 1024, (151936,)),
    Shape("llama-3.2-1b qkv", 2048, (2048, 512, 512)),
    Shape("llama-3.2-1b o", 2048, (2048,), "add"),
    Shape("llama-3.2-1b gate up", 2048, (8192, 8192), "silu_mul"),
    Shape("llama-3.2-1b down", 8192, (2048,), "add"),
    Shape("llama-3.2-1b head", 2048, (128256,)),
)


class Time(NamedTuple):
    """Seconds of one call, and the bytes of its weights."""

    median_s: float
    best_s: float
    num_bytes: int


def weights(shape: Shape, scheme: Scheme, layout: str) -> list[QuantizedArray]:
    """Stacks of bytes that mean ordinary numbers, none of them denormal."""
    stacks = []
    sizes = [_shapes(outer, shape.inner, scheme, layout) for outer in shape.outers]
    layers = max(1, -(-STACK_BYTES // sum(s.values_bytes + s.scales_bytes for s in sizes)))
    for outer, size in zip(shape.outers, sizes, strict=True):
        values = np.full((layers, size.values_bytes), 63, np.uint8)
        values = jnp.asarray(values.view(size.dtype).reshape(layers, *size.values))
        scales = None if size.scales is None else jnp.ones((layers, *size.scales), jnp.float32)
        stacks.append(QuantizedArray(values, scales, scheme, layout, outer, shape.inner))
    return stacks


class _Sizes(NamedTuple):
    values: tuple[int, ...]
    dtype: np.dtype
    scales: tuple[int, int] | None

    @property
    def values_bytes(self) -> int:
        return int(np.prod(self.values)) * self.dtype.itemsize

    @property
    def scales_bytes(self) -> int:
        return 0 if self.scales is None else int(np.prod(self.scales)) * 4


def _shapes(outer: int, inner: int, scheme: Scheme, layout: str) -> _Sizes:
    if layout == NATIVE:
        size = packing.block_bytes(scheme, inner, NUMBERS)
        return _Sizes((-(-outer // packing.BLOCK_ROWS), size), np.dtype(np.uint8), None)
    if not scheme.is_quantized:
        return _Sizes((outer, inner), NUMBERS, None)
    scales = outer, num_groups(scheme, inner)
    return _Sizes(values_shape(scheme, outer, inner), values_dtype(scheme), scales)


def measure(shape: Shape, scheme: Scheme, rows: int, layout: str) -> Time:
    """Time calls over all layers of a stack."""
    stacks = weights(shape, scheme, layout)
    layers = stacks[0].values.shape[0]
    operations = 2 * rows * shape.inner * sum(shape.outers)
    calls = max(1, min(layers, int(MAX_OPERATIONS / operations)))
    x = jnp.ones((rows, shape.inner), NUMBERS)
    residual = jnp.ones((rows, shape.outers[0]), NUMBERS) if shape.epilogue == "add" else None

    @jax.jit
    def program(x, stacks, residual):
        def body(layer, total):
            products = linear(
                x + total.astype(x.dtype),  # every call waits for the one before, as in a model
                stacks,
                layer,
                epilogue=shape.epilogue,
                residual=residual,
                dtype=NUMBERS,
                platform="cpu",
            )
            return total + 0 * sum(one[0, 0].astype(jnp.float32) for one in products)

        return jax.lax.fori_loop(0, calls, body, jnp.float32(0))

    program(x, stacks, residual).block_until_ready()
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        program(x, stacks, residual).block_until_ready()
        times.append((time.perf_counter() - began) / calls)
    num_bytes = sum(stack.values.nbytes // layers for stack in stacks)
    num_bytes += sum(0 if one.scales is None else one.scales.nbytes // layers for one in stacks)
    return Time(statistics.median(times), min(times), num_bytes)


def rows_of_table(arguments: argparse.Namespace, found: dict[str, float]) -> Iterator[dict]:
    """Measure every combination that was asked for."""
    threads = max(int(name.rsplit("_", 1)[1]) for name in found)
    bandwidth = found[f"read_gb_s_{threads}"] * 1e9
    for name in arguments.schemes.split(","):
        scheme, whole = BY_NAME[name], name in WHOLE
        rate = found[f"{'int8_gops' if whole else 'bf16_gflops'}_{threads}"] * 1e9
        for shape in SHAPES:
            if arguments.shapes not in shape.name:
                continue
            for rows in map(int, arguments.rows.split(",")):
                for layout in (NATIVE, ROWS) if arguments.xla else (NATIVE,):
                    taken = measure(shape, scheme, rows, layout)
                    operations = 2 * rows * shape.inner * sum(shape.outers)
                    floor = max(taken.num_bytes / bandwidth, operations / rate)
                    yield {
                        "scheme": name,
                        "shape": shape.name,
                        "rows": rows,
                        "by": layout.replace(ROWS, "xla"),
                        "median_us": taken.median_s * 1e6,
                        "best_us": taken.best_s * 1e6,
                        "gb_s": taken.num_bytes / taken.median_s / 1e9,
                        "gflop_s": operations / taken.median_s / 1e9,
                        "share_of_floor": floor / taken.median_s,
                    }


def main(arguments: argparse.Namespace) -> None:
    """Print a table."""
    reason = library.load(native_cache(), level=arguments.level, report=print)
    if reason:
        raise SystemExit(reason)
    found = limits()
    print(machine(), arguments.level, found)
    rows = []
    for row in rows_of_table(arguments, found):
        rows.append(row)
        print(
            f"{row['scheme']:13} {row['shape']:21} {row['rows']:5} rows {row['by']:7}"
            f" {row['median_us']:10.1f} us {row['gb_s']:6.1f} GB/s {row['gflop_s']:8.1f} GFLOP/s"
            f" {row['share_of_floor']:5.0%} of the floor",
            flush=True,
        )
    if arguments.json:
        figures = {"level": arguments.level, "limits": found, "rows": rows}
        write_record(arguments.json, "native_matmul", ("jax", "jaxlib", "numpy"), figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,16,512")
    parser.add_argument("--schemes", default="bfloat16,int8,int8_dynamic,int4,fp8")
    parser.add_argument("--shapes", default="", help="only shapes whose name has this")
    parser.add_argument("--level", default="auto")
    parser.add_argument("--xla", action="store_true", help="beside what plain XLA does")
    parser.add_argument("--json")
    main(parser.parse_args())
