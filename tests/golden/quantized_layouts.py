"""Writes tiny checkpoints as other people's quantizers lay them out, and what their numbers are.

Each layout is written from its documents alone, by plain NumPy that shares nothing with rtp_jax.
Values are drawn instead of rounded, so that all of them occur.  `python -m
tests.golden.quantized_layouts FOLDER` writes every case with its float32 twin, to be looked at or
loaded by other libraries.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.tiny_model import CONFIG as TINY
from tests.tiny_model import draw

HIDDEN, MLP, LAYERS = 256, 384, 2
CONFIG = {**TINY, "hidden_size": HIDDEN, "intermediate_size": MLP}
QUERY, KV = 128, 64  # rows of the projections: 4 and 2 heads of 32
MODULES = {
    "self_attn.q_proj": (QUERY, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, QUERY),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # bits 4n to 4n + 3 of a word are row AWQ_ORDER[n] of eight
BLOCK = 128

Tensors = dict[str, np.ndarray]


class Matrix(NamedTuple):
    """The tensors of one matrix, by the last words of their names, and its numbers."""

    tensors: Tensors
    numbers: np.ndarray  # float32 [outer, inner]


class Case(NamedTuple):
    """A way to quantize: how a matrix is written, and what config.json says of it."""

    write: Callable[[np.random.Generator, int, int], Matrix]
    config: dict


def int4(
    rng: np.random.Generator, outer: int, inner: int, group: int, zeros: bool, ordered: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw values 0..15 [outer, inner], zero points and float16 scales [outer, groups].

    Then which group each column is in, and the numbers that this means.
    """
    group = inner if group == -1 else group
    groups = inner // group
    values = rng.integers(0, 16, (outer, inner))
    zero_points = rng.integers(0, 16, (outer, groups)) if zeros else np.full((outer, groups), 8)
    spread = (0.5 + rng.random((outer, groups))) / 5 / np.sqrt(inner)
    scales = spread.astype(np.float16)
    group_of = np.arange(inner) // group
    if ordered:
        group_of[rng.permutation(inner)] = np.arange(inner) // group
    numbers = np.float32(values - zero_points[:, group_of]) * np.float32(scales)[:, group_of]
    return values, zero_points, scales, group_of, numbers


def words(values: np.ndarray, order: list[int] | None = None, bits: int = 4) -> np.ndarray:
    """Put values of the last axis into int32 words: bits 4n to 4n + 3 hold value `order[n]`."""
    count = 32 // bits
    grouped = values.reshape(*values.shape[:-1], -1, count).astype(np.uint32)
    word = np.zeros(grouped.shape[:-1], np.uint32)
    for n, place in enumerate(order or range(count)):
        word |= grouped[..., place] << np.uint32(bits * n)
    return word.view(np.int32)


def gptq(group: int, *, zeros: bool, ordered: bool, version: int, with_bias: bool = False) -> Case:
    """GPTQ as AutoGPTQ (version 1) and GPTQModel (2) write it."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        drawn = int4(rng, outer, inner, group, zeros, ordered)
        values, zero_points, scales, group_of, numbers = drawn
        stored = zero_points - 1 if version == 1 else zero_points
        tensors = {
            "qweight": np.ascontiguousarray(words(values).T),
            "qzeros": words((stored & 15).T),
            "scales": np.ascontiguousarray(scales.T),
            "g_idx": group_of.astype(np.int32),
        }
        if with_bias:
            tensors["bias"] = np.zeros(outer, np.float16)
        return Matrix(tensors, numbers)

    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": ordered}
    config |= {"sym": not zeros, "lm_head": False, "true_sequential": True, "static_groups": False}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    return Case(write, config)


def awq(group: int) -> Case:
    """AWQ in the GEMM layout of AutoAWQ."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        values, zero_points, scales, _, numbers = int4(rng, outer, inner, group, True, False)
        tensors = {
            "qweight": words(np.ascontiguousarray(values.T), AWQ_ORDER),
            "qzeros": words(np.ascontiguousarray(zero_points.T), AWQ_ORDER),
            "scales": np.ascontiguousarray(scales.T),
        }
        return Matrix(tensors, numbers)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Case(write, config | {"version": "gemm", "modules_to_not_convert": None})


def packed(group: int, *, zeros: bool, ordered: bool) -> Case:
    """W4A16 of compressed-tensors, `pack-quantized`: values -8..7 plus 8."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        drawn = int4(rng, outer, inner, group, zeros, ordered)
        values, zero_points, scales, group_of, numbers = drawn
        tensors = {
            "weight_packed": words(values),
            "weight_scale": scales,
            "weight_shape": np.array([outer, inner], np.int64),
        }
        if zeros:  # packed along the rows
            columns = words(np.ascontiguousarray(zero_points.T))
            tensors["weight_zero_point"] = np.ascontiguousarray(columns.T)
        if ordered:
            tensors["weight_g_idx"] = group_of.astype(np.int32)
        return Matrix(tensors, numbers)

    weights = {"num_bits": 4, "type": "int", "symmetric": not zeros, "group_size": group}
    weights |= {"strategy": "channel" if group == -1 else "group"}
    weights |= {"actorder": "group" if ordered else None}
    return Case(write, compressed("pack-quantized", weights, None))


def packed_bytes() -> Case:
    """W8A16 of compressed-tensors: values -128..127 plus 128, four in a word."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        values, scales = drawn_int8(rng, outer, inner, outer)
        shape = np.array([outer, inner], np.int64)
        tensors = {"weight_packed": words(values.astype(np.int64) + 128, bits=8)}
        tensors |= {"weight_scale": scales, "weight_shape": shape}
        return Matrix(tensors, np.float32(values) * np.float32(scales))

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return Case(write, compressed("pack-quantized", weights, None))


def drawn_int8(
    rng: np.random.Generator, outer: int, inner: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw int8 values, and bfloat16 scales of `rows` rows."""
    values = rng.integers(-128, 128, (outer, inner)).astype(np.int8)
    scales = (0.5 + rng.random((rows, 1))) / 75 / np.sqrt(inner)
    return values, scales.astype(ml_dtypes.bfloat16)


def drawn_float8(rng: np.random.Generator, outer: int, inner: int) -> np.ndarray:
    """Draw float8 values of all sizes, whose deviation is about 100."""
    return (
        (rng.standard_normal((outer, inner)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    )


def int8_values(strategy: str, *, dynamic: bool) -> Case:
    """W8A8 of compressed-tensors, `int-quantized`, or W8A16 of it."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        rows = outer if strategy == "channel" else 1
        values, scales = drawn_int8(rng, outer, inner, rows)
        numbers = np.float32(values) * np.float32(scales)
        stored = scales if strategy == "channel" else scales[0]
        return Matrix({"weight": values, "weight_scale": stored}, numbers)

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy}
    token = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return Case(write, compressed("int-quantized", weights, token if dynamic else None))


def float8_values(strategy: str, *, method: str = "compressed-tensors") -> Case:
    """FP8 with a scale for each row or for the matrix, of compressed-tensors or of transformers."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        values = drawn_float8(rng, outer, inner)
        rows = outer if strategy == "channel" else 1
        scales = np.float32((0.5 + rng.random((rows, 1))) / 100 / np.sqrt(inner))
        stored = scales if strategy == "channel" else scales.reshape(())
        numbers = np.float32(values) * scales
        return Matrix({"weight": values, "weight_scale": stored}, numbers)

    if method == "fp8":
        return Case(write, {"quant_method": "fp8", "activation_scheme": "dynamic"})
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    token = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
    return Case(write, compressed("float-quantized", weights, token | {"strategy": "token"}))


def float8_blocks(name: str) -> Case:
    """FP8 in blocks of 128 x 128, as DeepSeek-V3 has it, or compressed-tensors."""

    def write(rng: np.random.Generator, outer: int, inner: int) -> Matrix:
        values = drawn_float8(rng, outer, inner)
        shape = -(-outer // BLOCK), -(-inner // BLOCK)
        scales = np.float32((0.5 + rng.random(shape)) / 100 / np.sqrt(inner))
        numbers = np.empty((outer, inner), np.float32)
        for i in range(shape[0]):
            for j in range(shape[1]):
                part = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
                numbers[part] = np.float32(values[part]) * scales[i, j]
        return Matrix({"weight": values, name: scales}, numbers)

    if name == "weight_scale_inv":
        config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
        return Case(write, config | {"weight_block_size": [BLOCK, BLOCK]})
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block"}
    weights |= {"block_structure": [BLOCK, BLOCK]}
    of_input = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
    of_input |= {"strategy": "group", "group_size": BLOCK}
    return Case(write, compressed("float-quantized", weights, of_input))


def compressed(name: str, weights: dict, of_input: dict | None) -> dict:
    """Write the config of compressed-tensors for one group of all linear maps but the head."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": of_input}
    config = {"quant_method": "compressed-tensors", "format": name, "ignore": ["lm_head"]}
    return config | {
        "config_groups": {"group_0": group | {"output_activations": None}},
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


CASES = {
    "gptq_128": gptq(128, zeros=False, ordered=False, version=1, with_bias=True),
    "gptq_row": gptq(-1, zeros=False, ordered=False, version=1),
    "gptq_ordered_128": gptq(128, zeros=False, ordered=True, version=1),
    "gptq_zeros_ordered_32": gptq(32, zeros=True, ordered=True, version=1),
    "gptq_zeros_128": gptq(128, zeros=True, ordered=False, version=1),
    "gptq_v2_zeros_64": gptq(64, zeros=True, ordered=False, version=2),
    "gptq_v2_ordered_128": gptq(128, zeros=False, ordered=True, version=2),
    "awq_128": awq(128),
    "awq_64": awq(64),
    "packed_128": packed(128, zeros=False, ordered=False),
    "packed_row": packed(-1, zeros=False, ordered=False),
    "packed_zeros_128": packed(128, zeros=True, ordered=False),
    "packed_zeros_ordered_64": packed(64, zeros=True, ordered=True),
    "packed_bytes": packed_bytes(),
    "int8_row_dynamic": int8_values("channel", dynamic=True),
    "int8_tensor_dynamic": int8_values("tensor", dynamic=True),
    "int8_row": int8_values("channel", dynamic=False),
    "float8_row": float8_values("channel"),
    "float8_tensor": float8_values("tensor"),
    "float8_tensor_fp8": float8_values("tensor", method="fp8"),
    "float8_blocks": float8_blocks("weight_scale"),
    "float8_blocks_deepseek": float8_blocks("weight_scale_inv"),
}


def tensors_of(
    case: Case, seed: int = 0, plain: Callable[[str], bool] = lambda module: False
) -> tuple[Tensors, Tensors]:
    """Write the tensors of a checkpoint, and those of its float32 twin.

    Args:
      case: how matrices are quantized.
      seed: of all numbers.
      plain: which modules are not quantized.
    """
    rng = np.random.default_rng(seed)
    vocab, size = CONFIG["vocab_size"], CONFIG["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes["lm_head.weight"] = (vocab, HIDDEN)
    matrices = {}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN}
        norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
        shapes |= {f"{layer}.{name}.weight": (width,) for name, width in norms.items()}
        matrices |= {f"{layer}.{name}": shape for name, shape in MODULES.items()}
    dense = {name: draw(rng, name, shape) for name, shape in shapes.items()}
    written = dict(dense)
    for module, shape in matrices.items():
        if plain(module):
            dense[f"{module}.weight"] = written[f"{module}.weight"] = draw(rng, module, shape)
            continue
        matrix = case.write(rng, *shape)
        dense[f"{module}.weight"] = matrix.numbers
        written |= {f"{module}.{name}": tensor for name, tensor in matrix.tensors.items()}
    return written, dense


def with_quantization(quantization: dict) -> dict:
    """Give the config of the model that is quantized like that."""
    return {**CONFIG, "quantization_config": quantization}


def save(folder: Path, tensors: Tensors, quantization: dict | None) -> Path:
    """Write a folder with a config and the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG if quantization is None else with_quantization(quantization)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    for name, case in CASES.items():
        written, dense = tensors_of(case)
        save(Path(sys.argv[1]) / name, written, case.config)
        save(Path(sys.argv[1]) / f"{name}_float32", dense, None)
