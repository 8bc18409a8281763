"""Write models of published shapes with random bfloat16 weights (seed 0), and a tokenizer.

    <scratch>/hf/bin/python -m bench.peers.models FOLDER qwen3-0.6b llama3.2-1b

Speed does not depend on what the weights are.  The tokenizer ("t7" is 7) is there for engines that
do not start without one; all prompts are ids.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from bench.peers.workloads import MAX_LEN, SHAPES, Shape


def config(shape: Shape) -> LlamaConfig | Qwen3Config:
    """Say the shape in transformers' words."""
    rope = shape.rope_scaling or {"rope_type": "default"}
    return (Qwen3Config if shape.arch == "qwen3" else LlamaConfig)(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
        rms_norm_eps=shape.norm_eps,
        max_position_embeddings=shape.max_position,
        bos_token_id=1,
        eos_token_id=2,
        attention_bias=False,
        rope_parameters={**rope, "rope_theta": shape.rope_theta},
    )


def write_config(shape: Shape, folder: Path) -> None:
    """Add the rotary settings where older readers look for them."""
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | {"rope_theta": shape.rope_theta}
    if shape.rope_scaling:
        fields["rope_scaling"] = shape.rope_scaling
    file.write_text(json.dumps(fields, indent=1) + "\n")


def write_tokenizer(shape: Shape, folder: Path) -> None:
    """Write a vocabulary of one word for each id."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"t{i}": i for i in range(3, shape.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=MAX_LEN,
    ).save_pretrained(folder)


def main(folder: str, *names: str) -> None:
    """Write the models; one that is there already is left alone."""
    for name in names:
        target, shape = Path(folder) / name, SHAPES[name]
        if (target / "tokenizer_config.json").exists():
            continue
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16)
        model.save_pretrained(target, safe_serialization=True)
        write_config(shape, target)
        write_tokenizer(shape, target)
        print(f"{target}: {sum(p.numel() for p in model.parameters()):,} weights", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
