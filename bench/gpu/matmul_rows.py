"""Products with weights alone: every scheme and kernel against the reference, the floor and cuBLAS.

With few tokens the floor is the bytes of the weight, with many its flops: twice as many in a second
where both operands have 8 bits.  Read `timing.py` first.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from bench.gpu.results import Row, Skip
from bench.gpu.timing import (
    COLD_BYTES,
    Limits,
    Scale,
    against_floor,
    median_s,
    random_array,
    repeats_for,
)
from rtp_jax.errors import KernelError
from rtp_jax.kernels.quantized_matmul import KERNELS, quantized_matmul, reference
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray, plain
from rtp_jax.quant.schemes import Scheme, num_groups, values_dtype, values_shape
from tools.every_scheme import EVERY_SCHEME, SMALL_GROUPS

# Sums of thousands of products in float32, in another order, of numbers of about unit size.
TOLERANCE = 2e-2
WEIGHTS = {  # outer, inner: the products of Llama-3.1-8B and the narrow ones of Qwen3-0.6B
    "qkv 8b": (6144, 4096),
    "gate 8b": (14336, 4096),
    "down 8b": (4096, 14336),
    "gate 0.6b": (3072, 1024),
}
TOKENS = (8, 64, 512, 2048)
PLAIN_KERNEL = "cublas"


class Product(NamedTuple):
    """One product: `x @ weight.T`."""

    tokens: int
    outer: int
    inner: int
    scheme: str  # "bfloat16" or a name of `EVERY_SCHEME`

    @property
    def encoding(self) -> Scheme | None:
        """The scheme; None: numbers as they are."""
        return EVERY_SCHEME.get(self.scheme)

    @property
    def is_narrow(self) -> bool:
        """Whether both operands have 8 bits, which a GPU multiplies faster."""
        return self.encoding is not None and self.encoding.dynamic

    @property
    def weight_bytes(self) -> int:
        """Bytes of the values, the scales and the zero points of the weight."""
        scheme = self.encoding
        if scheme is None:
            return self.outer * self.inner * 2
        of_group = 5 if scheme.zeros else 4
        groups = self.outer * num_groups(scheme, self.inner)
        return self.outer * self.inner * scheme.bits // 8 + groups * of_group

    @property
    def num_bytes(self) -> int:
        """Bytes that have to move: the weight, the rows, the float32 results."""
        return self.weight_bytes + self.tokens * (self.inner * 2 + self.outer * 4)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.tokens * self.outer * self.inner


def weight_of(product: Product, layers: int, scale: Scale) -> QuantizedArray:
    """Draw a weight in its scheme."""
    draw = functools.partial(random_array, device=scale.device)
    outer, inner = product.outer, product.inner
    scheme = product.encoding
    if scheme is None:
        return plain(draw(0, (layers, outer, inner), dtype=jnp.bfloat16))
    shape = (layers, *values_shape(scheme, outer, inner))
    values = draw(0, shape, dtype=values_dtype(scheme))
    groups = (layers, outer, num_groups(scheme, inner))
    scales = jnp.abs(draw(1, groups, dtype=jnp.float32)) / (8 if scheme.bits == 4 else 127)
    zeros = draw(3, groups, dtype=jnp.uint8) & 15 if scheme.zeros else None
    return QuantizedArray(values, scales, scheme, ROWS, outer, inner, zeros)


def call(name: str, scale: Scale, x, weight: QuantizedArray, layer) -> jax.Array:
    """Run one implementation; on a CPU a kernel for GPUs is simulated, races included."""
    if name == PLAIN_KERNEL:
        contract = (((1,), (1,)), ((), ()))
        rows = weight.values[layer]
        return jax.lax.dot_general(x, rows, contract, preferred_element_type=jnp.float32)
    if is_simulated(name, scale):
        asked = MatmulShape.of("cuda", x, weight)
        if reason := KERNELS[name].obstacle(asked):
            raise Skip(reason)
        simulate = plgpu.InterpretGPUParams(detect_races=True)
        return KERNELS[name].quantized_matmul(x, weight, layer, interpret=simulate)
    try:
        return quantized_matmul(x, weight, layer, platform=scale.platform, implementation=name)
    except KernelError as reason:
        raise Skip(str(reason)) from reason


def is_simulated(name: str, scale: Scale) -> bool:
    """Whether a run of this implementation is a simulation."""
    return scale.dry and name.startswith("mosaic")


def checked(name: str, product: Product, scale: Scale) -> Mapping[str, Any]:
    """Compare one implementation with the reference."""
    x = random_array(2, (product.tokens, product.inner), jnp.bfloat16, scale.device)
    weight, layer = weight_of(product, 2, scale), jnp.int32(1)
    run = jax.jit(functools.partial(call, name, scale))
    actual = np.asarray(run(x, weight, layer), np.float32)
    exact = np.asarray(jax.jit(reference.quantized_matmul)(x, weight, layer), np.float32)
    error = float(np.abs(actual - exact).max() / max(np.abs(exact).max(), 1e-9))
    right = np.isfinite(actual).all() and error <= TOLERANCE
    return {"status": "ok" if right else "wrong", "error_of_check": error, "tolerance": TOLERANCE}


def timed(name: str, product: Product, scale: Scale, limits: Limits) -> Mapping[str, Any]:
    """Time one implementation, over as many matrices as outlast the caches."""
    needed = {"num_bytes": product.num_bytes, "flops": product.flops, "narrow": product.is_narrow}
    floor_s, _ = limits.floor(**needed)
    repeats = 1 if is_simulated(name, scale) else repeats_for(floor_s, dry=scale.dry)
    layers = scale.pick(int(np.clip(-(-COLD_BYTES // product.weight_bytes), 1, 64)), 2)
    x = random_array(2, (product.tokens, product.inner), jnp.bfloat16, scale.device)
    weight = weight_of(product, layers, scale)

    def rounds(x: jax.Array, weight: QuantizedArray) -> jax.Array:
        def once(i, x):
            result = call(name, scale, x, weight, i % layers)
            # The next product waits for this one, and differs from it in one number.
            return x.at[0, 0].set(result[0, 0].astype(x.dtype))

        return (
            call(name, scale, x, weight, 0)
            if repeats == 1
            else jax.lax.fori_loop(0, repeats, once, x)
        )

    program = jax.jit(rounds)
    found = median_s(lambda: program(x, weight), repeats=repeats)
    return against_floor(found, limits, **needed)


def gpu_kernels() -> list[str]:
    """List the implementations that a GPU may run."""
    return [name for name in KERNELS if "cuda" in KERNELS[name].PLATFORMS]


def rows(scale: Scale, limits: Limits) -> list[Row]:
    """List the checks, then the timings."""
    found = []
    schemes = ["bfloat16", *EVERY_SCHEME]
    for scheme in schemes:
        product = Product(scale.pick(96, 8), scale.pick(1024, 128), scale.pick(2048, 256), scheme)
        for kernel in gpu_kernels():
            run = functools.partial(checked, kernel, product, scale)
            found.append(Row(f"check/matmul/{scheme}/{kernel}", run))
    weights = scale.pick(WEIGHTS, {"small": (128, 256)})
    first = dict(list(weights.items())[:1])
    for scheme in schemes:
        names = [PLAIN_KERNEL] if scheme == "bfloat16" else gpu_kernels()
        for name, (outer, inner) in (first if scheme in SMALL_GROUPS else weights).items():
            for tokens in scale.pick(TOKENS, (8,)):
                product = Product(tokens, outer, inner, scheme)
                for kernel in names:
                    run = functools.partial(timed, kernel, product, scale, limits)
                    found.append(Row(f"matmul/{scheme}/{name} x {tokens}/{kernel}", run))
    return found


def over_bfloat16(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Say for each product that was timed how many times faster it is than cuBLAS in bfloat16."""
    found = {}
    for name, row in rows.items():
        kind, scheme, product, *_ = [*name.split("/"), "", ""]
        plain_row = rows.get(f"matmul/bfloat16/{product}/{PLAIN_KERNEL}", {})
        if kind == "matmul" and scheme != "bfloat16" and "milliseconds" in row.keys() & plain_row:
            found[name] = plain_row["milliseconds"] / row["milliseconds"]
    return found
