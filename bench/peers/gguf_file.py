"""Write a model of `models.py` as a bfloat16 GGUF file for llama.cpp, with a made-up vocabulary.

<scratch>/hf/bin/python -m bench.peers.gguf_file FOLDER/qwen3-0.6b FOLDER/qwen3-0.6b-bf16.gguf
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

BFLOAT16_FILE = 32  # llama.cpp's number for a file of mostly bfloat16
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}


def rope_divisors(fields: dict) -> np.ndarray | None:
    """Llama 3's scaling as GGUF has it: what each frequency is divided by, `[head_dim / 2]`."""
    scaling = fields.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    exponents = np.arange(0, fields["head_dim"], 2) / fields["head_dim"]
    wavelength = 2 * math.pi * fields["rope_theta"] ** exponents
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return np.float32(1 / ((1 - blend) / factor + blend))


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Turn rows from rotary halves to rotary pairs, which llama.cpp expects of this family."""
    head_dim = weight.shape[0] // heads
    return weight.reshape(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_header(writer: gguf.GGUFWriter, fields: dict) -> None:
    """Write the dimensions."""
    writer.add_file_type(BFLOAT16_FILE)
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_key_length(fields["head_dim"])
    writer.add_value_length(fields["head_dim"])
    writer.add_rope_dimension_count(fields["head_dim"])
    writer.add_rope_freq_base(fields["rope_theta"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_vocab_size(fields["vocab_size"])


def write_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Write bytes and made-up words."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    rest = size - len(tokens)
    tokens += [f"\u2581t{i}" for i in range(rest)]
    types += [kinds.NORMAL] * rest
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def renamed(name: str) -> tuple[str, str]:
    """Return GGUF's name of a weight, and which part of a layer it is."""
    if name in OUTSIDE:
        return OUTSIDE[name], ""
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    return f"blk.{layer}.{NAMES[part]}.weight", part


def main(source: str, target: str) -> None:
    """Convert one model."""
    fields = json.loads((Path(source) / "config.json").read_text())
    arch = fields["model_type"]
    writer = gguf.GGUFWriter(target, arch)
    write_header(writer, fields)
    write_vocabulary(writer, fields["vocab_size"])
    heads = {
        "self_attn.q_proj": fields["num_attention_heads"],
        "self_attn.k_proj": fields["num_key_value_heads"],
    }
    with safe_open(Path(source) / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
            if name == "lm_head.weight":  # tied
                continue
            new_name, part = renamed(name)
            weight = weights.get_tensor(name)
            if arch == "llama" and part in heads:
                weight = interleaved(weight, heads[part])
            if weight.dim() == 1:
                writer.add_tensor(new_name, weight.float().numpy())
                continue
            raw = weight.contiguous().view(torch.uint16).numpy().view(np.uint8)
            writer.add_tensor(new_name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    if (divisors := rope_divisors(fields)) is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
