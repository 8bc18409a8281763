"""How long does a program take on the device, and how long could it take at best?

Launching from the host costs as much as a small kernel takes, so a kernel runs many times within
one compiled program, each run fed by the one before.  What it reads rotates through more memory
than the caches hold.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = 5
TARGET_S = 0.02  # of one round: far above what it takes to launch it
COLD_BYTES = 512 << 20  # a rotation that outlasts the caches: 50 MB on an H200


class Limits(NamedTuple):
    """What the device reaches at its best."""

    bytes_per_s: float  # read and written together, while copying
    flops_per_s: float  # bfloat16 matmul with float32 sums

    def floor(self, *, num_bytes: float, flops: float, narrow: bool = False) -> tuple[float, str]:
        """Return the least time that work can take, and what bounds it; `narrow`: 8-bit products.

        Hopper multiplies int8 and float8 at twice the rate of bfloat16 (NVIDIA H100 Tensor Core GPU
        Architecture, table of peak rates).
        """
        flops_per_s = self.flops_per_s * (2 if narrow else 1)
        reading, computing = num_bytes / self.bytes_per_s, flops / flops_per_s
        return max(reading, computing), "bytes" if reading >= computing else "flops"


class Scale(NamedTuple):
    """How large things are: real ones, or those of the dry mode."""

    dry: bool
    device: Any
    platform: str  # what programs are compiled for: "cuda", or "cpu" in the dry mode

    def pick(self, real: Any, dry: Any) -> Any:
        """Choose by mode."""
        return dry if self.dry else real


def median_s(run: Callable[[], Any], *, repeats: int = 1, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time `run`, which does the work `repeats` times: the median of some rounds."""
    jax.block_until_ready(run())  # compiles
    jax.block_until_ready(run())  # warms up
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append((time.perf_counter() - began) / repeats)
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "spread": [min(seconds) * 1e3, max(seconds) * 1e3],
        "repeats": repeats,
    }


def repeats_for(floor_s: float, *, dry: bool) -> int:
    """Choose how often to repeat work within one program, from the least time it can take."""
    return 2 if dry else int(np.clip(TARGET_S / max(floor_s, 1e-7), 8, 400))


def against_floor(
    timed: dict[str, Any],
    limits: Limits,
    *,
    num_bytes: float,
    flops: float,
    narrow: bool = False,
) -> dict[str, Any]:
    """Add what share of the best possible was reached."""
    floor_s, bound = limits.floor(num_bytes=num_bytes, flops=flops, narrow=narrow)
    seconds = timed["milliseconds"] / 1e3
    rate = f"{num_bytes / seconds / 1e9:.0f} GB/s, {flops / seconds / 1e12:.1f} TFLOP/s"
    return {
        **timed,
        "floor_milliseconds": floor_s * 1e3,
        "share_of_floor": floor_s / seconds,
        "bound": bound,
        "rate": rate,
        "bytes": num_bytes,
        "flops": flops,
    }


def measure_limits(scale: Scale) -> tuple[Limits, dict[str, Any]]:
    """Measure copy bandwidth and matmul rate."""
    size = scale.pick(1 << 30, 1 << 20)  # bfloat16 numbers: 2 GiB read, 2 GiB written
    width = scale.pick(8192, 256)
    repeats = scale.pick(8, 2)
    draw = functools.partial(random_array, dtype=jnp.bfloat16, device=scale.device)

    def copies(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, y: jax.lax.optimization_barrier(y + 1), x)

    def products(left: jax.Array, right: jax.Array) -> jax.Array:
        def multiply(_, y):
            return ((y @ right) * 0.01).astype(jnp.bfloat16)

        return jax.lax.fori_loop(0, repeats, multiply, left)

    copy, x = jax.jit(copies), draw(0, (size,))
    copying = median_s(lambda: copy(x), repeats=repeats)
    product, left, right = jax.jit(products), draw(0, (width, width)), draw(1, (width, width))
    multiplying = median_s(lambda: product(left, right), repeats=repeats)
    limits = Limits(
        bytes_per_s=2 * size * 2 / (copying["milliseconds"] / 1e3),
        flops_per_s=2 * width**3 / (multiplying["milliseconds"] / 1e3),
    )
    return limits, {
        "copy_GB_per_s": limits.bytes_per_s / 1e9,
        "matmul_TFLOP_per_s": limits.flops_per_s / 1e12,
    }


def random_array(seed: int, shape: tuple[int, ...], dtype: Any, device: Any) -> jax.Array:
    """Draw numbers of about unit size on the device; integers are drawn over their whole range."""
    dtype = jnp.dtype(dtype)

    def draw() -> jax.Array:
        key = jax.random.key(seed)
        if jnp.issubdtype(dtype, jnp.integer):
            bits = jax.random.bits(key, shape, jnp.uint8)
            return jax.lax.bitcast_convert_type(bits, jnp.int8).astype(dtype)
        bits = jax.random.bits(key, shape, jnp.uint16)
        centred = bits.astype(jnp.float32) * (2 / 65535) - 1
        return (centred * 1.7320508).astype(dtype)  # uniform, of unit variance

    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.jit(draw, out_shardings=sharding)()
