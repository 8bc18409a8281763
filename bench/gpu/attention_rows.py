"""Attention alone: every kernel against the float32 reference, the floor and what others offer.

Decoding reads all KV of a batch once, so its floor is their bytes over copy bandwidth; a chunk of
a prompt is bound by its flops.  Read `timing.py` first.
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
from rtp_jax.kernels.paged_attention import KERNELS, paged_attention, reference
from rtp_jax.kernels.pages import KVGroup, StepInputs, write_kv

PAGE_SIZE = 64
# bfloat16 results of about unit size: rounded once, from weights that were rounded once.
TOLERANCE = 2e-2


class Shape(NamedTuple):
    """A step: for each sequence the tokens in its pages, and how many of them are new."""

    lengths: tuple[int, ...]
    new: tuple[int, ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    layers: int = 1
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    kv_dtype: str = "bfloat16"

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV that one layer has to read."""
        size = 2 * self.kv_heads * self.head_dim * (2 if self.kv_dtype == "bfloat16" else 1)
        return sum(self.lengths) * size

    @property
    def flops(self) -> int:
        """Multiplications and additions of all scores that are visible, and of the values."""
        pairs = sum(
            n * length - n * (n - 1) // 2 for length, n in zip(self.lengths, self.new, strict=True)
        )
        return 4 * self.heads * self.head_dim * pairs


class Inputs(NamedTuple):
    """What attention is called with."""

    query: jax.Array
    pages: jax.Array
    scales: jax.Array | None
    sinks: jax.Array | None
    step: StepInputs


def step_of(shape: Shape, device: Any) -> StepInputs:
    """Lay sequences out over pages in a random order."""
    rng = np.random.default_rng(0)
    pages_of = [-(-length // PAGE_SIZE) for length in shape.lengths]
    order = 1 + rng.permutation(sum(pages_of)).astype(np.int32)
    table = np.zeros((len(shape.lengths), max(pages_of)), np.int32)
    ends = np.cumsum(pages_of)
    for sequence, (end, count) in enumerate(zip(ends, pages_of, strict=True)):
        table[sequence, :count] = order[end - count : end]
    new = np.array(shape.new, np.int32)
    positions = np.concatenate(
        [np.arange(length - n, length) for length, n in zip(shape.lengths, shape.new, strict=True)]
    )
    arrays = StepInputs(
        positions=positions[None].astype(np.int32),
        sequence_of=np.repeat(np.arange(len(new), dtype=np.int32), new),
        num_tokens=np.int32(new.sum()),
        page_table=table,
        query_start=(np.cumsum(new) - new).astype(np.int32),
        query_count=new,
    )
    return jax.tree.map(lambda array: jax.device_put(array, device), arrays)


def inputs_of(shape: Shape, scale: Scale) -> Inputs:
    """Draw queries and fill the pages; the engine's own code writes int8 and float8 pages."""
    step = step_of(shape, scale.device)
    num_pages = 1 + sum(-(-length // PAGE_SIZE) for length in shape.lengths)
    full = (num_pages, shape.layers, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim)
    tokens = sum(shape.new)
    draw = functools.partial(random_array, device=scale.device)
    query = draw(0, (tokens, shape.heads, shape.head_dim), jnp.bfloat16)
    sinks = draw(1, (shape.heads,), jnp.float32) if shape.sinks else None
    numbers = draw(2, full, jnp.bfloat16)
    if shape.kv_dtype == "bfloat16":
        pages = jax.jit(lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16), donate_argnums=0)(
            numbers
        )
        return Inputs(query, pages, None, sinks, step)
    pages, scales, _ = jax.jit(functools.partial(_scaled, kv_dtype=shape.kv_dtype))(numbers)
    return Inputs(query, pages, scales, sinks, step)


def _scaled(numbers: jax.Array, *, kv_dtype: str) -> KVGroup:
    """Encode whole pages by writing each as if its tokens were new."""
    pages, layers, _, kv_heads, size, head_dim = numbers.shape
    storage = jnp.dtype(jnp.int8 if kv_dtype == "int8" else jnp.uint8)
    tokens = jnp.arange(pages * size, dtype=jnp.int32)
    step = StepInputs(
        positions=(tokens % size)[None],
        sequence_of=tokens // size,
        num_tokens=jnp.int32(tokens.size),
        page_table=jnp.arange(pages, dtype=jnp.int32)[:, None],
        query_start=jnp.arange(pages, dtype=jnp.int32) * size,
        query_count=jnp.full(pages, size, jnp.int32),
    )
    held = KVGroup(jnp.zeros(numbers.shape, storage), jnp.zeros(numbers.shape[:-1], jnp.float32))
    for layer in range(layers):
        rows = numbers[:, layer].transpose(1, 0, 3, 2, 4).reshape(2, -1, kv_heads, head_dim)
        held = write_kv(held, jnp.int32(layer), rows[0], rows[1], step)
    return held


def call(name: str, shape: Shape, scale: Scale, query, pages, layer, inputs: Inputs) -> jax.Array:
    """Run one implementation; on a CPU a kernel for GPUs is simulated, races included."""
    options = {
        "scale": shape.head_dim**-0.5,
        "sliding_window": shape.window,
        "soft_cap": shape.soft_cap,
        "sinks": inputs.sinks,
        "scales": inputs.scales,
    }
    if scale.dry and name.startswith("mosaic"):
        run, simulate = KERNELS[name].paged_attention, plgpu.InterpretGPUParams(detect_races=True)
        return run(query, pages, layer, inputs.step, **options, interpret=simulate)
    try:
        return paged_attention(
            query,
            pages,
            layer,
            inputs.step,
            **options,
            platform=scale.platform,
            implementation=name,
        )
    except KernelError as reason:
        raise Skip(str(reason)) from reason


def is_simulated(name: str, scale: Scale) -> bool:
    """Whether a run of this implementation is a simulation."""
    return scale.dry and name.startswith("mosaic")


def checked(name: str, shape: Shape, scale: Scale) -> Mapping[str, Any]:
    """Compare one implementation with the reference in float32."""
    inputs = inputs_of(shape, scale)
    run = jax.jit(functools.partial(call, name, shape, scale))
    layer = jnp.int32(shape.layers - 1)
    actual = np.asarray(run(inputs.query, inputs.pages, layer, inputs), np.float32)
    exact = jax.jit(
        functools.partial(
            reference.paged_attention,
            scale=shape.head_dim**-0.5,
            sliding_window=shape.window,
            soft_cap=shape.soft_cap,
        )
    )(
        inputs.query.astype(jnp.float32),
        inputs.pages,
        layer,
        inputs.step,
        sinks=inputs.sinks,
        scales=inputs.scales,
    )
    exact = np.asarray(exact)
    error = float(np.abs(actual - exact).max() / max(np.abs(exact).max(), 1e-9))
    right = np.isfinite(actual).all() and error <= TOLERANCE
    return {"status": "ok" if right else "wrong", "error_of_check": error, "tolerance": TOLERANCE}


def timed(name: str, shape: Shape, scale: Scale, limits: Limits) -> Mapping[str, Any]:
    """Time one implementation, over as many layers as make the KV outlast the caches."""
    floor_s, _ = limits.floor(num_bytes=shape.kv_bytes, flops=shape.flops)
    repeats = 1 if is_simulated(name, scale) else repeats_for(floor_s, dry=scale.dry)
    layers = int(np.clip(-(-COLD_BYTES // shape.kv_bytes), 1, 16)) if not scale.dry else 2
    shape = shape._replace(layers=layers)
    inputs = inputs_of(shape, scale)

    def rounds(query: jax.Array, pages: jax.Array, inputs: Inputs) -> jax.Array:
        if repeats == 1:
            return call(name, shape, scale, query, pages, jnp.int32(0), inputs)
        return jax.lax.fori_loop(
            0,
            repeats,
            lambda i, query: call(name, shape, scale, query, pages, i % layers, inputs),
            query,
        )

    program = jax.jit(rounds)
    found = median_s(lambda: program(inputs.query, inputs.pages, inputs), repeats=repeats)
    return against_floor(found, limits, num_bytes=shape.kv_bytes, flops=shape.flops)


def dense(kind: str, shape: Shape, scale: Scale, limits: Limits) -> Mapping[str, Any]:
    """Time attention over contiguous KV by others: no pages, all sequences of one length."""
    batch, length, new = len(shape.lengths), max(shape.lengths), max(shape.new)
    draw = functools.partial(random_array, dtype=jnp.bfloat16, device=scale.device)
    query = draw(0, (batch, new, shape.heads, shape.head_dim))
    key = draw(1, (batch, length, shape.kv_heads, shape.head_dim))
    value = draw(2, (batch, length, shape.kv_heads, shape.head_dim))
    is_causal = new > 1
    if is_causal and new != length:
        raise Skip("a causal mask that is aligned to the end is not offered")
    if kind == "tokamax":
        try:
            import tokamax
        except ImportError as reason:
            raise Skip(f"tokamax: {reason}") from reason
        attend = tokamax.dot_product_attention
    else:
        implementation = "xla" if scale.dry else kind
        attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    floor_s, _ = limits.floor(num_bytes=shape.kv_bytes, flops=shape.flops)
    repeats = repeats_for(floor_s, dry=scale.dry)

    def rounds(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        def once(_, query):
            return attend(query, key, value, is_causal=is_causal).astype(query.dtype)

        return jax.lax.fori_loop(0, repeats, once, query)

    program = jax.jit(rounds)
    found = median_s(lambda: program(query, key, value), repeats=repeats)
    return against_floor(found, limits, num_bytes=shape.kv_bytes, flops=shape.flops)


def ragged(**options: Any) -> Shape:
    """Mix decoding sequences with chunks of prompts, one of them behind earlier pages."""
    return Shape((200, 65, 1, 130, 64, 300), (1, 1, 1, 130, 10, 70), **options)


def gpu_kernels() -> list[str]:
    """List the implementations that a GPU may run."""
    return [name for name in KERNELS if not name.startswith("native")]


def rows(scale: Scale, limits: Limits) -> list[Row]:
    """List the checks, then the timings."""
    small = {"heads": 4, "kv_heads": 2, "head_dim": 64} if scale.dry else {}
    cases = {
        "plain": ragged(**small),
        "window": ragged(window=100, **small),
        "soft cap and sinks": ragged(soft_cap=20.0, sinks=True, **small),
        "int8 pages": ragged(kv_dtype="int8", **small),
        "float8 pages": ragged(kv_dtype="float8", **small),
        "heads of 64": ragged(**{**small, "head_dim": 64}),
        "one kv head": ragged(**{**small, "heads": 8, "kv_heads": 1}),
    }
    if scale.dry:
        cases = {name: cases[name] for name in ("plain", "float8 pages")}
    found = [
        Row(f"check/attention/{kernel}/{case}", functools.partial(checked, kernel, shape, scale))
        for case, shape in cases.items()
        for kernel in gpu_kernels()
    ]
    for case, shape in timed_shapes(scale).items():
        for kernel in gpu_kernels():
            run = functools.partial(timed, kernel, shape, scale, limits)
            found.append(Row(f"attention/{case}/{kernel}", run))
        for kind in ("cudnn", "tokamax") if shape.kv_dtype == "bfloat16" else ():
            run = functools.partial(dense, kind, shape, scale, limits)
            found.append(Row(f"attention/{case}/{kind} dense", run))
    return found


def timed_shapes(scale: Scale) -> dict[str, Shape]:
    """Name the shapes that are timed."""
    if scale.dry:
        small = Shape((70, 70), (1, 1), heads=4, kv_heads=2, head_dim=64)
        return {"decode 2 x 70": small, "prefill 70": small._replace(lengths=(70,), new=(70,))}
    shapes = {
        f"decode {batch} x {length}": Shape((length,) * batch, (1,) * batch)
        for batch, length in ((1, 2048), (1, 32768), (8, 8192), (32, 2048), (128, 2048), (256, 512))
    }
    shapes["decode 32 x 2048 int8"] = Shape((2048,) * 32, (1,) * 32, kv_dtype="int8")
    shapes["decode 32 x 2048 float8"] = Shape((2048,) * 32, (1,) * 32, kv_dtype="float8")
    shapes["decode 128 x 2048, 16 heads"] = Shape((2048,) * 128, (1,) * 128, heads=16)
    shapes["prefill 2048"] = Shape((2048,), (2048,))
    shapes["prefill 8192"] = Shape((8192,), (8192,))
    shapes["prefill 2048 behind 14336"] = Shape((16384,), (2048,))
    return shapes
