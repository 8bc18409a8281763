"""The shapes of real models, as their `config.json` has them: enough to build one without weights.

Nothing is imported here: peers read it in environments without jax.

Sources: the configs of meta-llama/Llama-3.1-8B, Qwen/Qwen3-0.6B, Qwen/Qwen3-8B and Qwen/Qwen3-32B.
"""

# fmt: off
SIZES = {  # layers, hidden, heads, kv_heads, mlp, vocabulary, tied
    "llama-3.1-8b": (32, 4096, 32, 8, 14336, 128256, False),
    "qwen3-0.6b":   (28, 1024, 16, 8,  3072, 151936, True),
    "qwen3-8b":     (36, 4096, 32, 8, 12288, 151936, False),
    "qwen3-32b":    (64, 5120, 64, 8, 25600, 151936, False),
}
# fmt: on
LLAMA_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config_of(name: str) -> dict:
    """Write the `config.json` of a model."""
    layers, hidden, heads, kv_heads, mlp, vocab, tied = SIZES[name]
    llama = name.startswith("llama")
    return {
        "architectures": ["LlamaForCausalLM" if llama else "Qwen3ForCausalLM"],
        "model_type": "llama" if llama else "qwen3",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "head_dim": 128,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5 if llama else 1e-6,
        "max_position_embeddings": 131072 if llama else 40960,
        "rope_theta": 500000.0 if llama else 1000000.0,
        "rope_scaling": LLAMA_ROPE if llama else None,
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "use_cache": True,
    }
