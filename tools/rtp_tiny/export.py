"""How does rtp-tiny become a Hugging Face folder?  Names and layouts are those of Qwen3.

Training stacks layers and keeps matrices as [in, out]; the folder has one tensor for each layer,
as [out, in], in bfloat16.  `read_params` goes the other way, for evaluation.

    python -m tools.rtp_tiny.export       writes the checkpoint of `train.py` to rtp_jax/assets
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.flax import load_file, save_file

from tools.rtp_tiny.checkpoint import load_checkpoint
from tools.rtp_tiny.model import TinyConfig
from tools.rtp_tiny.tokenizer import (
    BOS_ID,
    END_ID,
    EOS_ID,
    PAD_ID,
    load_tokenizer,
    write_tokenizer_config,
    write_tokenizer_json,
)

ASSETS = Path("rtp_jax/assets/rtp-tiny")
MAX_POSITIONS = 1024
LAYER_NAMES = {
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
}
WHOLE_NAMES = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}


def write_model(
    folder: Path, config: TinyConfig, params: dict[str, Array], tokenizer_model: Path
) -> None:
    """Write config, weights and tokenizer; the folder then loads in `transformers`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: params[ours] for ours, name in WHOLE_NAMES.items()}
    for ours, suffix in LAYER_NAMES.items():
        for layer, value in enumerate(params[ours]):
            tensors[f"model.layers.{layer}.{suffix}"] = value.T if value.ndim == 2 else value
    tensors = {name: jnp.asarray(np.array(tensors[name]), jnp.bfloat16) for name in sorted(tensors)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file leaves it private
    _write_json(folder / "config.json", _model_config(config))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": [END_ID, EOS_ID], "pad_token_id": PAD_ID,
         "do_sample": False},
    )  # fmt: skip
    if tokenizer_model != folder / "tokenizer.model":
        shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    write_tokenizer_json(load_tokenizer(tokenizer_model), folder / "tokenizer.json")
    write_tokenizer_config(folder / "tokenizer_config.json", max_length=MAX_POSITIONS)


def read_params(folder: Path) -> tuple[TinyConfig, dict[str, Array]]:
    """Read a folder back into float32 training parameters."""
    written = json.loads((folder / "config.json").read_text())
    fields = {field.name: written[field.name] for field in dataclasses.fields(TinyConfig)}
    config = TinyConfig(**fields)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}
    params = {ours: tensors[name] for ours, name in WHOLE_NAMES.items()}
    for ours, suffix in LAYER_NAMES.items():
        layers = [tensors[f"model.layers.{i}.{suffix}"] for i in range(config.num_hidden_layers)]
        params[ours] = jnp.stack([value.T if value.ndim == 2 else value for value in layers])
    return config, params


def _model_config(config: TinyConfig) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **dataclasses.asdict(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": config.num_hidden_layers,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """Export a training checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/rtp-tiny"))
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    state = load_checkpoint(arguments.work)
    assert state is not None, f"no checkpoint in {arguments.work}"
    write_model(arguments.out, TinyConfig(), state.params, arguments.work / "tokenizer.model")


if __name__ == "__main__":
    main()
