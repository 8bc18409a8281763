"""The kernels alone, at the shapes of real models: small programs that compile in seconds."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.paged_attention import paged_attention
from rtp_jax.kernels.pages import KVPages, KVScales, StepInputs, storage_dtype
from rtp_jax.kernels.quantized_matmul import quantized_matmul
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from rtp_jax.quant.schemes import Scheme, num_groups, values_dtype, values_shape
from rtp_jax.runner.programs import Program
from tools.every_scheme import EVERY_SCHEME, SMALL_GROUPS
from tools.gpu_gate.report import Expectation

PAGE_SIZE, NUM_PAGES, NUM_LAYERS, TABLE_WIDTH = 64, 4096, 2, 512
MAX_TEMP_BYTES = 256 << 20  # partial results of split keys; an expanded copy of the KV is larger

# Names of kernels, as programs and ptxas have them.  Attention is one call for sequences that
# decode and one for chunks of prompts, whatever a step holds.
ATTENTION = ("paged_attention_walk",) * 2
MATMUL = ("streamed_matmul",)


class Attention(NamedTuple):
    """One call of attention; a decoding step of 64 sequences where nothing else is said."""

    heads: int
    kv_heads: int
    head_dim: int = 128
    tokens: int = 64
    sequences: int = 64
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    kv_dtype: str = "bfloat16"
    is_quick: bool = True

    @property
    def is_scaled(self) -> bool:
        """Whether pages have scales."""
        return self.kv_dtype != "bfloat16"


LLAMA = Attention(32, 8)
ATTENTIONS = {
    "llama-3.1-8b": LLAMA,
    "llama-3.1-8b-mixed": LLAMA._replace(tokens=512, sequences=8),
    "llama-3.1-8b-features": LLAMA._replace(window=4096, soft_cap=50.0, sinks=True),
    "llama-3.1-8b-int8": LLAMA._replace(kv_dtype="int8"),
    "llama-3.1-8b-float8": LLAMA._replace(kv_dtype="float8_e4m3fn"),
    "llama-3.1-8b-float8-features": LLAMA._replace(
        window=4096, soft_cap=50.0, sinks=True, kv_dtype="float8_e4m3fn"
    ),
    "llama-3.2-1b": Attention(32, 8, 64),
    "qwen3-0.6b": Attention(16, 8),
    "qwen3-0.6b-mixed": Attention(16, 8, tokens=512, sequences=8, is_quick=False),
    "qwen3-32b": Attention(64, 8),
    "qwen3-32b-mixed": Attention(64, 8, tokens=512, sequences=8, is_quick=False),
    "qwen3-32b-shard-of-8": Attention(8, 1),
    "no-groups": Attention(16, 16, is_quick=False),
    "group-of-16": Attention(32, 2, is_quick=False),
}
WEIGHTS = {"gate-8b": (14336, 4096), "query-0.6b": (2048, 1024), "down-8b": (4096, 14336)}
TOKENS = (8, 512)
QUICK_WEIGHTS = {("gate-8b", 8), ("gate-8b", 512), ("query-0.6b", 8)}
QUICK_SMALL = {("gate-8b", 8), ("query-0.6b", 512)}  # of groups that are smaller than a tile


class KernelCase(NamedTuple):
    """A program of one kernel."""

    make: Callable[[], Program]
    expected: Expectation
    is_quick: bool


def kernel_cases() -> dict[str, KernelCase]:
    """List the kernels by name."""
    attention = Expectation(kernels=ATTENTION, max_temp_bytes=MAX_TEMP_BYTES)
    cases = {
        f"kernel/attention/{name}": KernelCase(
            functools.partial(_attention, call), attention, call.is_quick
        )
        for name, call in ATTENTIONS.items()
    }
    for kind, scheme in EVERY_SCHEME.items():
        quick = QUICK_SMALL if kind in SMALL_GROUPS else QUICK_WEIGHTS
        for name, sizes in WEIGHTS.items():
            for tokens in TOKENS:
                cases[f"kernel/matmul-{kind}/{name}-x-{tokens}"] = KernelCase(
                    functools.partial(_product, scheme, tokens, sizes),
                    Expectation(kernels=MATMUL, max_temp_bytes=MAX_TEMP_BYTES, has_weights=True),
                    (name, tokens) in quick,
                )
    return cases


def _attention(call: Attention) -> Program:
    """Describe attention over one layer of pages that have two."""
    described = jax.ShapeDtypeStruct
    ids = functools.partial(described, dtype=jnp.int32)
    full = (NUM_PAGES, NUM_LAYERS, 2, call.kv_heads, PAGE_SIZE, call.head_dim)
    step = StepInputs(
        positions=ids((1, call.tokens)),
        sequence_of=ids((call.tokens,)),
        num_tokens=ids(()),
        page_table=ids((call.sequences, TABLE_WIDTH)),
        query_start=ids((call.sequences,)),
        query_count=ids((call.sequences,)),
    )
    query = described((call.tokens, call.heads, call.head_dim), jnp.bfloat16)
    pages = described(full, storage_dtype(jnp.dtype(call.kv_dtype)))
    scales = described(full[:-1], jnp.float32) if call.is_scaled else None
    sinks = described((call.heads,), jnp.float32) if call.sinks else None

    def attend(
        query: Float[Array, "tokens heads head_dim"],
        pages: KVPages,
        layer: Int32[Array, ""],
        step: StepInputs,
        scales: KVScales | None,
        sinks: Float[Array, " heads"] | None,
    ) -> Float[Array, "tokens heads head_dim"]:
        return paged_attention(
            query,
            pages,
            layer,
            step,
            scale=call.head_dim**-0.5,
            sliding_window=call.window,
            soft_cap=call.soft_cap,
            sinks=sinks,
            scales=scales,
            platform="cuda",
        )

    return Program("attention", attend, (query, pages, ids(()), step, scales, sinks), query)


def _product(scheme: Scheme, tokens: int, sizes: tuple[int, int]) -> Program:
    """Describe a product with one of two matrices, so that a copy of it would be seen."""
    outer, inner = sizes
    described = jax.ShapeDtypeStruct
    values = described((NUM_LAYERS, *values_shape(scheme, outer, inner)), values_dtype(scheme))
    groups = (NUM_LAYERS, outer, num_groups(scheme, inner))
    scales = described(groups, jnp.float32)
    zeros = described(groups, jnp.uint8) if scheme.zeros else None
    weight = QuantizedArray(values, scales, scheme, ROWS, outer, inner, zeros)
    x = described((tokens, inner), jnp.bfloat16)

    def multiply(
        weight: QuantizedArray, x: Float[Array, "tokens inner"], layer: Int32[Array, ""]
    ) -> Float[Array, "tokens outer"]:
        return quantized_matmul(x, weight, layer, platform="cuda")

    return Program("product", multiply, (weight, x, described((), jnp.int32)), x)
