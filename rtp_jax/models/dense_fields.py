"""The dense decoder that Llama and its relatives are: its config.

A family says what is different about it: `llama.py`, `mistral.py`, `qwen2.py`, `qwen3.py`.
Read next: `dense.py` for its modules.
"""

from typing import Any

from rtp_jax.models.fields import Fields
from rtp_jax.models.quantization_fields import read_quantization
from rtp_jax.models.rope_fields import read_rope
from rtp_jax.models.spec import ModelSpec

DTYPES = ("float32", "bfloat16", "float16")


def read_dense(
    config: Fields, *, kv_heads: int | None = None, head_dim: int | None = None, **family: Any
) -> ModelSpec:
    """Read what all dense decoders have in their config.

    Args:
      config: the fields of a `config.json`.
      kv_heads: the number of KV heads where the config does not say; None: it must.
      head_dim: the size of a head where the config does not say; None: its part of the width.
      family: fields of `ModelSpec` that a family decides: `windows`, biases, `head_norm`.
    """
    config.choice("hidden_act", "silu", ("silu", "swish"))
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", kv_heads)
    if num_heads % num_kv_heads:
        raise config.disagree(
            "num_attention_heads", f"it is no multiple of num_key_value_heads={num_kv_heads}"
        )
    head_dim = _head_dim(config, hidden_size, num_heads, head_dim)
    rope, max_positions = read_rope(config, head_dim)
    num_layers = config.integer("num_hidden_layers")
    bos = config.token_ids("bos_token_id")
    return ModelSpec(
        **{
            "architecture": architecture_of(config),
            "vocab_size": config.integer("vocab_size"),
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "mlp_size": config.integer("intermediate_size"),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "norm_eps": config.number("rms_norm_eps", 1e-6),
            "rope": rope,
            "max_positions": max_positions,
            "windows": (None,) * num_layers,
            "dtype": _dtype(config),
            "tied": config.flag("tie_word_embeddings", False),
            "bos_token_id": bos[0] if bos else None,
            "eos_token_ids": config.token_ids("eos_token_id"),
            "quantization": read_quantization(config),
            **family,
        }
    )


def architecture_of(config: Fields) -> str:
    """Return the name of the architecture, which must be exactly one."""
    names = config.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise config.wrong("architectures", "a list of one name")
    return names[0]


def _head_dim(config: Fields, hidden_size: int, num_heads: int, default: int | None) -> int:
    if default is None and not config.has("head_dim"):
        if hidden_size % num_heads:
            raise config.disagree("hidden_size", f"it does not divide into {num_heads} heads")
        default = hidden_size // num_heads
    head_dim = config.integer("head_dim", default)
    if head_dim % 2:
        raise config.disagree("head_dim", f"heads of {head_dim} have no pairs to turn")
    return head_dim


def read_windows(config: Fields) -> tuple[int | None, ...]:
    """Read which layers look back only so far, as Qwen configs say it."""
    num_layers = config.integer("num_hidden_layers")
    if not config.flag("use_sliding_window", False):
        return (None,) * num_layers
    window = config.integer("sliding_window")
    if not config.has("layer_types"):
        first = config.integer("max_window_layers", low=0)
        return tuple(window if i >= first else None for i in range(num_layers))
    kinds = config.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.disagree("layer_types", f"num_hidden_layers is {num_layers}")
    window_of = {"full_attention": None, "sliding_attention": window}
    if unknown := [kind for kind in kinds if kind not in window_of]:
        raise config.unsupported(
            "layer_types", f"Supported: {', '.join(window_of)}, not {unknown}."
        )
    return tuple(window_of[kind] for kind in kinds)


def _dtype(config: Fields) -> str:
    name = "dtype" if config.has("dtype") else "torch_dtype"
    return config.choice(name, "float32", DTYPES)
