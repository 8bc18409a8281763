"""The kernels alone, at the shapes of real models: small programs that compile in a second."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.paged_attention import paged_attention
from rtp_jax.kernels.pages import KVPages, StepInputs, storage_dtype
from rtp_jax.kernels.quantized_matmul import quantized_matmul
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from rtp_jax.quant.schemes import SCHEMES, Scheme, num_groups, values_dtype, values_shape
from rtp_jax.runner.programs import Program
from tools.gpu_gate.report import Expectation

PAGE_SIZE, NUM_PAGES, NUM_LAYERS, TABLE_WIDTH = 64, 4096, 2, 512
HEADS = {  # heads, kv_heads, head_dim
    "llama-3.1-8b": (32, 8, 128),
    "llama-3.2-1b": (32, 8, 64),
    "qwen3-0.6b": (16, 8, 128),
    "qwen3-32b": (64, 8, 128),
    "qwen3-32b-shard-of-8": (8, 1, 128),
}
STEPS = {"decode": (64, 64), "mixed": (512, 8)}  # tokens, sequences
MAX_TEMP_BYTES = 256 << 20  # partial results of split keys; an expanded copy of the KV is larger


WEIGHTS = {"gate-8b": (14336, 4096), "down-8b": (4096, 14336), "query-0.6b": (2048, 1024)}
TOKENS = (8, 512)

Described = dict[str, tuple[Callable[[], Program], Expectation]]


def kernel_cases() -> Described:
    """List the kernels by name."""
    return _attentions() | _products()


def _attentions() -> Described:
    expected = Expectation(kernels=ATTENTION, max_temp_bytes=MAX_TEMP_BYTES)
    return {
        f"kernel/attention-{step}/{model}": (
            functools.partial(_attention, f"attention-{step}/{model}", heads, STEPS[step]),
            expected,
        )
        for model, heads in HEADS.items()
        for step in STEPS
    }


def _products() -> Described:
    expected = Expectation(kernels=MATMUL, max_temp_bytes=MAX_TEMP_BYTES)
    return {
        f"kernel/matmul-{scheme}/{name}-x-{tokens}": (
            functools.partial(_product, SCHEMES[scheme], tokens, sizes),
            expected,
        )
        for scheme in SCHEMES
        for name, sizes in WEIGHTS.items()
        for tokens in TOKENS
    }


# Names of kernels, as programs and ptxas have them.
ATTENTION: tuple[str, ...] = ()
MATMUL: tuple[str, ...] = ("streamed_matmul",)


def _attention(name: str, heads: tuple[int, int, int], sizes: tuple[int, int]) -> Program:
    (num_heads, kv_heads, head_dim), (tokens, sequences) = heads, sizes
    described = jax.ShapeDtypeStruct
    ids = functools.partial(described, dtype=jnp.int32)
    pages = (NUM_PAGES, NUM_LAYERS, 2, kv_heads, PAGE_SIZE, head_dim)
    step = StepInputs(
        positions=ids((1, tokens)),
        sequence_of=ids((tokens,)),
        num_tokens=ids(()),
        page_table=ids((sequences, TABLE_WIDTH)),
        query_start=ids((sequences,)),
        query_count=ids((sequences,)),
    )
    query = described((tokens, num_heads, head_dim), jnp.bfloat16)
    stored = described(pages, storage_dtype(jnp.dtype(jnp.bfloat16)))

    def attend(
        query: Float[Array, "tokens heads head_dim"],
        pages: KVPages,
        layer: Int32[Array, ""],
        step: StepInputs,
    ) -> Float[Array, "tokens heads head_dim"]:
        return paged_attention(query, pages, layer, step, scale=head_dim**-0.5, platform="cuda")

    return Program(name, attend, (query, stored, ids(()), step), query)


def _product(scheme: Scheme, tokens: int, sizes: tuple[int, int]) -> Program:
    """Describe a product with one of two matrices, so that a copy of it would be seen."""
    outer, inner = sizes
    stack = jax.ShapeDtypeStruct
    values = stack((NUM_LAYERS, *values_shape(scheme, outer, inner)), values_dtype(scheme))
    scales = stack((NUM_LAYERS, outer, num_groups(scheme, inner)), jnp.float32)
    weight = QuantizedArray(values, scales, scheme, ROWS, outer, inner)
    x = jax.ShapeDtypeStruct((tokens, inner), jnp.bfloat16)
    layer = jax.ShapeDtypeStruct((), jnp.int32)
    multiply = functools.partial(quantized_matmul, platform="cuda")
    return Program("product", multiply, (x, weight, layer), x)
