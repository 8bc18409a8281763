"""What does rtp-tiny compute?  The Qwen3 architecture as one pure function, for training only.

Documents lie packed in rows: `segments` says which document a token belongs to, and a token sees
only earlier tokens of its own document.  `optimizer.py` updates these parameters and `export.py`
writes them under their Hugging Face names; serving uses the engine's own model, not this one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from tools.rtp_tiny.matmul import matmul


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """The shape of the model; the names are those of `config.json`."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6


def init_params(config: TinyConfig, key: Array) -> dict[str, Array]:
    """Draw the parameters; arrays of layers are stacked, matrices are [layers, in, out]."""
    layers, hidden, dim = config.num_hidden_layers, config.hidden_size, config.head_dim
    shapes = {
        "q_proj": (hidden, config.num_attention_heads * dim),
        "k_proj": (hidden, config.num_key_value_heads * dim),
        "v_proj": (hidden, config.num_key_value_heads * dim),
        "o_proj": (config.num_attention_heads * dim, hidden),
        "gate_proj": (hidden, config.intermediate_size),
        "up_proj": (hidden, config.intermediate_size),
        "down_proj": (config.intermediate_size, hidden),
    }
    keys = dict(zip([*shapes, "embed"], jax.random.split(key, len(shapes) + 1), strict=True))
    params = {
        name: jax.random.normal(keys[name], (layers, *shape)) * shape[0] ** -0.5
        for name, shape in shapes.items()
    }
    for name in ("o_proj", "down_proj"):  # each adds to the stream once a layer
        params[name] *= (2 * layers) ** -0.5
    params["embed"] = jax.random.normal(keys["embed"], (config.vocab_size, hidden)) * 0.02
    params["input_norm"] = jnp.ones((layers, hidden))
    params["post_norm"] = jnp.ones((layers, hidden))
    params["q_norm"] = jnp.ones((layers, dim))
    params["k_norm"] = jnp.ones((layers, dim))
    params["final_norm"] = jnp.ones((hidden,))
    return params


def forward(
    params: dict[str, Array], config: TinyConfig, tokens: Array, segments: Array, positions: Array
) -> Array:
    """Return float32 logits [rows, length, vocab] for tokens, segments and positions alike."""
    rows, length = tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & (segments[:, :, None] == segments[:, None, :])
    rotation = _rotation(positions, config)
    stream = params["embed"][tokens].reshape(rows * length, -1)
    for layer in range(config.num_hidden_layers):
        weights = {
            name: value[layer]
            for name, value in params.items()
            if name not in ("embed", "final_norm")
        }
        normed = _rms_norm(stream, weights["input_norm"], config.rms_norm_eps)
        stream += _attention(normed, weights, config, rotation, mask)
        normed = _rms_norm(stream, weights["post_norm"], config.rms_norm_eps)
        gate = jax.nn.silu(matmul(normed, weights["gate_proj"]))
        stream += matmul(gate * matmul(normed, weights["up_proj"]), weights["down_proj"])
    stream = _rms_norm(stream, params["final_norm"], config.rms_norm_eps)
    return matmul(stream, params["embed"].T).reshape(rows, length, -1)


def _attention(
    normed: Array,
    weights: dict[str, Array],
    config: TinyConfig,
    rotation: tuple[Array, Array],
    mask: Array,
) -> Array:
    """Attend with grouped queries; q and k are normalised for each head, then rotated."""
    rows, length, _ = mask.shape
    kv_heads, dim = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // kv_heads
    q = matmul(normed, weights["q_proj"]).reshape(rows, length, kv_heads * group, dim)
    k = matmul(normed, weights["k_proj"]).reshape(rows, length, kv_heads, dim)
    v = matmul(normed, weights["v_proj"]).reshape(rows, length, kv_heads, dim)
    q = _rotate(_rms_norm(q, weights["q_norm"], config.rms_norm_eps), rotation) * dim**-0.5
    k = _rotate(_rms_norm(k, weights["k_norm"], config.rms_norm_eps), rotation)
    # The queries of one kv head lie end to end: [rows, kv_heads, group * length, head_dim].
    q = q.transpose(0, 2, 1, 3).reshape(rows, kv_heads, group * length, dim)
    scores = matmul(q, k.transpose(0, 2, 3, 1)).reshape(rows, kv_heads, group, length, length)
    mixture = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
    mixture = mixture.reshape(rows, kv_heads, group * length, length)
    mixed = matmul(mixture, v.transpose(0, 2, 1, 3))
    mixed = mixed.reshape(rows, kv_heads * group, length, dim).transpose(0, 2, 1, 3)
    return matmul(mixed.reshape(rows * length, -1), weights["o_proj"])


def _rms_norm(values: Array, scale: Array, eps: float) -> Array:
    mean_square = jnp.mean(values * values, axis=-1, keepdims=True)
    return values * jax.lax.rsqrt(mean_square + eps) * scale


def _rotation(positions: Array, config: TinyConfig) -> tuple[Array, Array]:
    """Return cosines and sines [rows, length, 1, head_dim / 2] of the rotary embedding."""
    exponents = jnp.arange(0, config.head_dim, 2) / config.head_dim
    angles = positions[:, :, None, None] * config.rope_theta**-exponents
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(heads: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotate the first half of each head against its second half, as Hugging Face does."""
    cos, sin = rotation
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
