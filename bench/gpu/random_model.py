"""A model of real shape with random weights that are drawn on the device.

The folder is what an engine expects: a config, and a checkpoint with the right header whose data is
a hole in the file, which takes no disk.  Loading is replaced: nothing is read, numbers are drawn.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bench.gpu.work import shrunk
from rtp_jax.runner import start
from tools.model_shapes import config_of

SPREAD = 0.02  # of the weights: activations stay finite through all layers


def write_model(folder: Path, name: str, *, small: bool) -> Path:
    """Write a folder for a model; `small` keeps its kind and little else."""
    config = shrunk(config_of(name)) if small else config_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    _write_hole(folder / "model.safetensors", config)
    return folder


def _write_hole(path: Path, config: Mapping[str, Any]) -> None:
    """Write a safetensors file of zeros that are not there."""
    header, end = {}, 0
    for name, shape in _tensors(config).items():
        begin, end = end, end + math.prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """List the tensors of a checkpoint of a dense decoder without biases, and their shapes."""
    hidden, mlp, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def draw_instead_of_loading(device: Any) -> Callable[[], None]:
    """Let engines that are built from now on draw their weights; returns how to undo it."""
    loading = start.load

    def drawn(folder: Path, table: object, stored: Mapping[str, Any], **_: object) -> dict:
        sharding = jax.sharding.SingleDeviceSharding(device)
        return {
            path: jax.jit(_numbers, static_argnums=(0, 1, 2, 3), out_shardings=sharding)(
                number, described.shape, str(described.dtype), "norm" in path
            )
            for number, (path, described) in enumerate(stored.items())
        }

    def undo() -> None:
        start.load = loading

    start.load = drawn
    return undo


def _numbers(seed: int, shape: tuple[int, ...], dtype: str, is_norm: bool) -> jax.Array:
    if is_norm:
        return jnp.ones(shape, dtype)
    bits = jax.random.bits(jax.random.key(seed), shape, jnp.uint16)
    return ((bits.astype(jnp.float32) - 32767.5) * (SPREAD * 3**0.5 / 32768)).astype(dtype)
