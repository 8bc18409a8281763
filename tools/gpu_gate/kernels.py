"""The kernels alone, at the shapes of real models: small programs that compile in a second."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from rtp_jax.kernels.paged_attention import paged_attention
from rtp_jax.kernels.pages import KVPages, StepInputs, storage_dtype
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


def kernel_cases() -> dict[str, tuple[Callable[[], Program], Expectation]]:
    """List the kernels by name."""
    expected = Expectation(kernels=ATTENTION, max_temp_bytes=MAX_TEMP_BYTES)
    return {
        f"kernel/attention-{step}/{model}": (
            functools.partial(_attention, f"attention-{step}/{model}", heads, STEPS[step]),
            expected,
        )
        for model, heads in HEADS.items()
        for step in STEPS
    }


ATTENTION: tuple[str, ...] = ()


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
