"""Models that the built-in one cannot stand for: a larger one, and one whose layers differ.

Both are folders as the built-in model is, with its tokenizer, so that every command takes them.
Read next: `arms.py`.
"""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file, save_file

RTP_TINY = Path(__file__).parents[2] / "rtp_jax" / "assets" / "rtp-tiny"
TENSORS = "model.safetensors"
TOKENIZER = ("generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# Layers of the shape of Qwen3-0.6B's, but for what is written here.
RANDOM = {
    "num_hidden_layers": 8,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
LOGIT_DEVIATION = 3.0  # almost as sure of the next token as the built-in model
NORM_DEVIATION = 0.1


def write_random(folder: Path, *, seed: int = 0, **sizes: int) -> Path:
    """Write a model of random weights; `sizes` are fields of its config."""
    folder.mkdir(parents=True)
    config = json.loads((RTP_TINY / "config.json").read_text()) | RANDOM | sizes
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in TOKENIZER:
        shutil.copyfile(RTP_TINY / name, folder / name)
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(rng, name, shape) for name, shape in _shapes(config).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    return folder


def write_outliers(source: Path, folder: Path, *, layers: Iterable[int], factor: float) -> Path:
    """Write the same function with two large channels in each key of some layers.

    Keys of large models have a few channels that are always many times larger than the others.
    Here the two channels that rotate together are multiplied in keys and divided in queries: no
    score changes, and with a power of two as the factor not a bit of one.
    """
    folder.mkdir(parents=True)
    for name in ("config.json", *TOKENIZER):
        shutil.copyfile(source / name, folder / name)
    tensors = load_file(source / TENSORS)
    for layer in layers:
        for norm, by in (("q_norm", 1 / factor), ("k_norm", factor)):
            name = f"model.layers.{layer}.self_attn.{norm}.weight"
            half = len(tensors[name]) // 2
            tensors[name] = tensors[name].at[jnp.array([half - 1, 2 * half - 1])].multiply(by)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    return folder


def _shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, mlp, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, shared = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, query),
        "self_attn.q_norm": (size,),
        "self_attn.k_norm": (size,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    ends = dict.fromkeys(("model.embed_tokens", "lm_head"), (config["vocab_size"], hidden))
    shapes = {"model.norm": (hidden,)} | ends
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> jnp.ndarray:
    """Draw a tensor so that what goes through it keeps its size."""
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return jnp.asarray(1 + NORM_DEVIATION * noise, jnp.bfloat16)
    if "embed" in name:
        return jnp.asarray(noise, jnp.bfloat16)
    gain = LOGIT_DEVIATION if "lm_head" in name else 1.0
    return jnp.asarray(gain / math.sqrt(shape[1]) * noise, jnp.bfloat16)
